"""Merges on a GPU: how long they take, how far they are from the CPU's, and which routine is best.

merges.py       every rule on layers of two models, on the device and on the CPU
candidates.py   the routines that could serve for one operation, on stacks of several sizes
measure.py      all of it in the order of its value, a row of JSON per line: a process of its own
command.py      starts that process, keeps its rows, and ends it when the time is over
report.py       the tables of docs/benchmarks.md, from the results
"""

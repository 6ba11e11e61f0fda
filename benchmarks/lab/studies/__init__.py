"""Preference deltas under the paper's optimiser, and a crowd whose data is noisy.

design.py   sets, methods, scales and seeds, fixed before any row was measured; what they cost
tune.py     DPO and ORPO in one short loop
sets.py     adapters of a study, each trained once, and held-out preferences
axes.py     deltas of one countable quality each
copies.py   deltas of the student's own damaged copies
regimen.py  the grid of their training
figures.py  what is measured of a model
run.py      the rows: base, adapters, merges, evaluated in float32
results.py  rows by study, method, scale and number of adapters
verdict.py  what helps, by the rules of design.py
report.py   tables from the rows, into ../results.md
axes_report.py  table and tests of the axes
picture.py  the picture of the axes
command.py  python -m benchmarks studies
results.jsonl  the rows, one JSON object per line
"""

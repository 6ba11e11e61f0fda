"""A small laboratory for claims about merging: adapters of SmolLM2 on tasks with known answers, with seeds.

design.py       what is measured, in what order, at what cost
adapters.py     trains an adapter, once
preferences.py  pairs of a weak and a weaker model, and adapters by DPO on them
measure.py      merges, loads the result into the model, measures it
run.py          units of work over processes; stops and resumes
rows.py         the results, one JSON object a line
statistics.py   means, intervals, paired tests
choose.py       a method by what is measured without data or by a few questions: chosen on some seeds, judged on others
chosen.py       tables of such choices
markdown.py     figures as text, and tables of it
report.py       tables and plots from the results, into README.md
command.py      python -m benchmarks lab
"""

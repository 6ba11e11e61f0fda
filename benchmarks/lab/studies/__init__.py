"""Preference deltas under the paper's optimiser, and a crowd whose data is noisy.

design.py   sets, methods, scales and seeds, fixed before any row was measured; what they cost
tune.py     DPO and ORPO in one short loop
sets.py     adapters of a study, each trained once, and held-out preferences
run.py      the rows: base, adapters, merges, evaluated in float32
command.py  python -m benchmarks studies
results.jsonl  the rows, one JSON object per line
"""

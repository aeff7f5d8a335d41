"""Recipes and what runs them: TOML in, a run folder with stages, ledger and report out.

`stages.py` says which stages there are, `reading.py` turns a TOML file and flags into their typed settings, `runner.py`
runs them in a run folder, `stamp.py` tells whether a stage's folder is whole, `lineage.py` writes `groundup.json`,
`ranks.py` has several processes run one stage.
"""

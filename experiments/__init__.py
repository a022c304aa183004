"""Training and evaluation programs, run from a checkout: `python -m experiments.NAME`."""

"""Un-pruning measured: tables, plots and controls. ``python -m experiments.unpruning --help``."""

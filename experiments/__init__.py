"""The papers' tables and figures, tuning and benchmarks; each runs as ``python -m``."""

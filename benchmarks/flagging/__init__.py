"""Frames and figures of `benchmarks/flags.py`."""

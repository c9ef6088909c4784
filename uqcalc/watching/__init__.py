"""Runs watched while they go on: what is logged, flagged, halted and said."""

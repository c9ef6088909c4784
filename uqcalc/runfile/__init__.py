"""Runs from a run file: validated, under a monitor, continued after a kill."""

"""Runs from a file: validated, under a monitor, going on after a kill."""

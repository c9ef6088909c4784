"""Limits on signals, from normal runs or from labelled frames."""

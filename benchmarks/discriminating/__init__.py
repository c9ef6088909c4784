"""Labelled predictions on which the discrimination benchmark judges its rows."""

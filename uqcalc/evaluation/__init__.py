"""Evaluation of a probe: scores, report, HTML page, and guarantee."""

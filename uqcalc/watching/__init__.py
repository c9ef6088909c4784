"""Monitoring of runs: event log, flagged frames, halts and summaries."""

"""A fitted probe: what it computes in a step, and the file that keeps it."""

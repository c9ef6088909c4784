"""A fitted probe: its computation in each step, and the file that stores it."""

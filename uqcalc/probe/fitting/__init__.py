"""How a probe is fitted: its paths, the loop, what joins them."""

"""How a probe is fitted: its paths, the training loop, what joins the paths."""

"""Statistics on plain arrays: conformal quantiles, scores of probabilities."""

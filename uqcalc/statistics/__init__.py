"""Statistics on plain arrays: conformal quantiles and scores of probabilities."""

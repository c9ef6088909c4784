"""How good a probe is: scores, report, page, and the guarantee."""

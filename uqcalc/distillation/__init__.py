"""A direct-force head for potentials that have none, learnt without labels."""

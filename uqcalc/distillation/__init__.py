"""A direct-force head for potentials that have none, learnt without labels."""

from uqcalc.distillation.fitting import distill
from uqcalc.distillation.head import DistilledHead, HeadCard


__all__ = ["DistilledHead", "HeadCard", "distill"]

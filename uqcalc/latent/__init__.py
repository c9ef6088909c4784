"""What the features of a fit say of new ones: plain arrays in, tensors out.

What `uqcalc.LatentDistance` and `uqcalc.PredictionRigidity` are made of, for anybody
who has features without a calculator. Features are (atoms, dim), of one device; atomic
numbers are (atoms,), on the host.
"""

from uqcalc.latent.distances import (
    AtomSample,
    Mahalanobis,
    Neighbours,
    PerElement,
    shrunk_covariance,
)
from uqcalc.latent.rigidity import ZETA2, Rigidity


__all__ = [
    "ZETA2",
    "AtomSample",
    "Mahalanobis",
    "Neighbours",
    "PerElement",
    "Rigidity",
    "shrunk_covariance",
]

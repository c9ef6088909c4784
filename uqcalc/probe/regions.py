"""P of a region: from P of its surroundings, and from P of each atom in them.

The calibration of a probe is about whole structures. The RMS error of a few atoms
scatters more than that of a structure, and depends on which atoms they are. So the
error of a region is that of its surroundings times the ratio of both RMS values:

- the median |ΔF_i| of each atom follows from its own P,
- log |ΔF_i| scatters by s about it within a structure. In log-odds models the residual
  of the log error is logistic: its variance is pi²/3 divided by the squared slope of
  the log-odds against the log error. s² is that of atoms minus that of structures,
- P is the mean over fixed draws of this scatter.

A region that is its whole surroundings has exactly their P. benchmarks/regions.py
compares it with the calibration of a part read as a structure.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch

from uqcalc.probe.card import Card
from uqcalc.targets import TARGETS


DRAWS = 64
_SURE = 1e-6  # log-odds of P beyond this are not resolved in single precision


def is_shareable(card: Card) -> bool:
    """Return whether the card has what `region_reliability` needs."""
    ours, theirs = card.atom_calibration, card.calibration
    if ours is None or TARGETS[card.target].of != "forces":
        return False
    return len(set(ours.shifts)) > 1 and len(set(theirs.shifts)) > 1


def region_reliability(
    card: Card, around: torch.Tensor, atoms: torch.Tensor, inside: torch.Tensor
) -> torch.Tensor:
    """Return P that the error over the atoms ``inside`` is within the boundary.

    Parameters
    ----------
    card : Card
        See `is_shareable`.
    around : tensor ()
        P of the surroundings, the region included, at the card's boundary.
    atoms : tensor (atoms,)
        P of each atom of the surroundings at the card's ``atom_boundary``.
    inside : integer tensor (chosen,)
        Rows of these atoms that belong to the region.

    Returns
    -------
    tensor ()
        NaN if an input is NaN.
    """
    ours, theirs = card.atom_calibration, card.calibration
    if ours is None:
        msg = "card must have a calibration of atoms, got none"
        raise ValueError(msg)
    middle = ours.middle(_log_odds(atoms))
    scatter = math.sqrt(max(0.0, ours.log_variance - theirs.log_variance))
    noise = _noise(len(atoms), atoms.device)
    squares = (2 * (middle.log() + scatter * noise)).exp()
    if card.target == "atom_forces":
        ratio = squares[:, inside].amax(dim=1) / squares.amax(dim=1)
    else:
        ratio = squares[:, inside].mean(dim=1) / squares.mean(dim=1)
    logits = theirs.moved(_log_odds(around), card.boundary / ratio.sqrt())
    return logits.sigmoid().mean().to(around.dtype)


def _log_odds(probability: torch.Tensor) -> torch.Tensor:
    return probability.double().clamp(_SURE, 1 - _SURE).logit()


@lru_cache(maxsize=8)
def _noise(atoms: int, device: torch.device) -> torch.Tensor:
    """Return the same normal numbers, (DRAWS, atoms), at each call."""
    numbers = np.random.default_rng(0).standard_normal((DRAWS, atoms))
    with torch.inference_mode(mode=False):
        return torch.from_numpy(numbers).to(device)

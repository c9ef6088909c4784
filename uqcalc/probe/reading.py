"""Readings of a probe: probabilities and scope from the outputs of its paths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from uqcalc.errors import ProbeError
from uqcalc.probe.addedpaths import AddedOutput, mixed
from uqcalc.probe.batch import Batch
from uqcalc.probe.card import Card
from uqcalc.probe.inputs import Ragged
from uqcalc.probe.scope import Scope
from uqcalc.probe.stacked import REMOTE, StackedOutput


_SURE = 1e-7  # P of an atom this close to 0 or 1 is not resolved in single precision


class ProbeReading(NamedTuple):
    r"""Output of a probe for a ragged batch, on the device of the features.

    Attributes
    ----------
    reliability : tensor (structures,)
        Calibrated P(reliable), float32.
    importance : tensor (atoms of all structures,) or None
        Attention received, summing to 1 over each structure.
    atoms : tensor (atoms of all structures,) or None
        P(\|ΔF_i\| <= the card's ``atom_boundary``).
    parts : tensor (structures, 4) or None
        Contribution of each of `uqcalc.probe.stacked.PATHS` to the log-odds, relative
        to its mean over the labelled structures.
    novelty : tensor (structures,) or None
        Distance from the labels in units of the scope's limit (`Scope.novelty`).
    charge_gap : tensor (structures,) or None
        Difference of the total charge and the nearest total charge in the labels, in e.
    worst_atom : tensor (structures,) or None
        Log-odds of the atom floor at that size minus log-odds of the least reliable
        atom (`uqcalc.probe.scope.AtomFloor`); negative above the floor.
    other : tensor (structures,) or None
        P(error <= ``other``), if `Probe.read` was given a second boundary.
    added : tensor (structures,) or None
        Weight of the labels that were added to a prior (`uqcalc.probe.addedpaths`).
    """

    reliability: torch.Tensor
    importance: torch.Tensor | None
    atoms: torch.Tensor | None = None
    parts: torch.Tensor | None = None
    novelty: torch.Tensor | None = None
    charge_gap: torch.Tensor | None = None
    worst_atom: torch.Tensor | None = None
    other: torch.Tensor | None = None
    added: torch.Tensor | None = None

    def on_host(self) -> ProbeReading:
        """Return the same outputs on the host; without a GPU they are not copied."""
        parts = self._asdict().items()
        return self._replace(**{n: part.cpu() for n, part in parts if part is not None})


def probability(
    card: Card,
    score: torch.Tensor,
    boundary: float | None,
    added: AddedOutput | None,
) -> torch.Tensor:
    """Return P(error <= boundary), (structures,), by default at the card's boundary."""
    prior = torch.sigmoid(card.calibration.logits(score, boundary))
    record = card.added
    if added is None or record is None:
        return prior
    logits = record.calibration.logits(score, boundary, added.correction)
    return mixed(prior, logits.sigmoid(), added.weight, added.foreign)


def atom_log_odds(
    card: Card,
    stacked: StackedOutput,
    sizes: Sequence[int],
    added: AddedOutput | None,
) -> torch.Tensor | None:
    r"""Return the log-odds of \|ΔF_i\| <= the card's ``atom_boundary``, (atoms,).

    ``sizes`` are the atoms of each structure. None if the probe has no calibration of
    atoms.
    """
    prior = _prior_of_atoms(card, stacked, sizes)
    record = card.added
    if prior is None or added is None or added.atom_correction is None:
        return prior
    if record is None or record.atom_calibration is None:
        return prior
    own = record.atom_calibration.adapted(prior + added.atom_correction)
    weight, foreign = added.atom_weight, added.atom_foreign
    return mixed(prior.sigmoid(), own.sigmoid(), weight, foreign).logit(_SURE)


def _prior_of_atoms(
    card: Card, stacked: StackedOutput, sizes: Sequence[int]
) -> torch.Tensor | None:
    """Return the log-odds of atoms without those labels that were added to a prior."""
    scores = stacked.atoms
    if scores is None or stacked.beyond is None or card.atom_calibration is None:
        return None
    if card.atom_shares is None or len(card.calibration.shifts) < 2:
        found = card.atom_calibration.logits(scores)
    elif stacked.log_forces is None or card.atom_boundary is None:
        msg = "log forces and atom_boundary must be there with shares, got None"
        raise ProbeError(msg)
    else:
        found = card.atom_shares.logits(
            card.calibration,
            card.calibration.logits(stacked.score),
            card.atom_shares.shares(scores, stacked.log_forces, sizes),
            sizes,
            card.atom_boundary,
        )
    return found - REMOTE * stacked.beyond


def worst_atom(
    card: Card, logits: torch.Tensor, batch: Batch, added: AddedOutput | None
) -> torch.Tensor | None:
    """Return `ProbeReading.worst_atom`, from the log-odds of the atoms."""
    levels = batch.floors
    if levels is None:
        return None
    system = card.atom_calibration
    if card.atom_shares is not None:  # atoms follow their structure
        system = card.calibration
    if system is not None:  # the floor is that of all systems
        levels = system.adapted(levels)
    record = card.added
    if added is not None and record is not None and record.atom_calibration:
        own = record.atom_calibration.adapted(levels)
        levels = levels + added.weight * (own - levels)
    lowest = Ragged(batch.sizes, logits.device).min(logits[:, None])[:, 0]
    return levels - lowest


def novelty_and_charge_gap(
    scope: Scope | None,
    batch: Batch,
    stacked: StackedOutput,
    added: AddedOutput | None,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Return ``novelty`` and ``charge_gap`` of a `ProbeReading`."""
    if scope is None:
        return None, None
    gap = None
    if scope.charges and batch.charges is not None:
        each = batch.charges.split(list(batch.sizes))
        sums = torch.stack([charges.sum() for charges in each])
        known = torch.tensor(scope.charges, dtype=sums.dtype, device=sums.device)
        gap = (sums[:, None] - known).abs().amin(dim=1)
    novelty = scope.novelty(
        stacked.distance, stacked.mean_log_distance, stacked.elements
    )
    if added is not None:  # inside one of the two scopes is inside
        novelty = novelty.masked_fill(added.foreign, torch.inf)
        novelty = novelty.minimum(added.novelty)
    return novelty, gap

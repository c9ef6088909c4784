"""Labelled frames for a probe that is there already: to score it, or to promise by."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence

from ase import Atoms

from uqcalc.backbones.base import Backbone
from uqcalc.errors import LabelError
from uqcalc.probe.card import Card
from uqcalc.probe.dataset import Dataset, build_dataset
from uqcalc.probe.labelling.labels import Labels
from uqcalc.probe.labelling.offsets import warn_of_span
from uqcalc.probe.storage.featurecache import Cache


def labels_for(card: Card, labels: Labels | None) -> Labels:
    """Return the labels that a probe can be held against; by default of its target.

    Raises
    ------
    LabelError
        If they are of another target, or ask for offsets that the probe has not: fitted
        to the very labels it is held against, they would flatter it.
    """
    wanted = labels or Labels(card.target)
    if wanted.target != card.target:
        msg = (
            f"labels must be of the probe's own target {card.target!r}, got "
            f"{wanted.target!r}"
        )
        raise LabelError(msg)
    if wanted.offsets and not card.offsets:
        msg = (
            "offsets must be the probe's own, fitted to its labels, got offsets=True "
            "for a probe without any; fit the probe with Labels(offsets=True), or "
            "compare energies as they are"
        )
        raise LabelError(msg)
    return wanted


def held_out_dataset(
    card: Card,
    frames: Sequence[Atoms],
    backbone: Backbone,
    labels: Labels,
    exclude: Collection[str],
    cache: str | os.PathLike[str] | Cache | None = None,
) -> Dataset:
    """Evaluate ``frames``, energies taken after the offsets of the probe.

    ``cache`` is a folder that keeps the features (`build_dataset`).
    """
    offsets = card.offsets or None
    data = build_dataset(
        frames, backbone, labels, exclude=exclude, offsets=offsets, cache=cache
    )
    warn_of_span(data.numbers, card.training.get("offset_span") if offsets else None)
    return data

"""A fitted probe: networks, input statistics and card in one safetensors file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase.data import chemical_symbols

from uqcalc.backbones.base import Backbone
from uqcalc.backbones.fingerprint import same_model
from uqcalc.backbones.prediction import Prediction
from uqcalc.elements import ElementsSeen
from uqcalc.errors import ProbeError
from uqcalc.htmltable import html_table
from uqcalc.nodraws import NoDraws
from uqcalc.probe.card import FILE, Card
from uqcalc.probe.inputs import Statistics
from uqcalc.probe.joined import Joined, JoinedShape
from uqcalc.probe.labelling.seen import Seen
from uqcalc.probe.network import ProbeNetwork, Shape
from uqcalc.probe.paths import ProbePaths
from uqcalc.tensorfile import load_state


class Probe(ProbePaths):
    """P(reliable) of structures from their predictions: a file, and what it knows.

    Parameters
    ----------
    card : Card
    network : ProbeNetwork
    statistics : Statistics or None
        None for the published layout, whose inputs enter raw.
    joined : Joined or None
        The other paths of the default architecture.
    seen : Seen, optional
        Geometries and groups that it was fitted to and calibrated on.
    """

    def __init__(
        self,
        card: Card,
        network: ProbeNetwork,
        statistics: Statistics | None,
        joined: Joined | None = None,
        seen: Seen | None = None,
    ) -> None:
        super().__init__(card, network, statistics, joined)
        self.seen = Seen.nothing() if seen is None else seen
        self._seen = ElementsSeen(card.elements)

    def __repr__(self) -> str:
        said = ", ".join(f"{name}: {text}" for name, text in self._rows())
        return f"<Probe {said}>"

    def _repr_html_(self) -> str:
        return html_table("Probe", self._rows())

    def _rows(self) -> list[tuple[str, str]]:
        card = self.card
        cutoffs = f"P < {card.suspect:.3g}, P < {card.unreliable:.3g}"
        return [
            ("gives", card.meaning),
            ("for", card.fingerprint),
            ("SUSPECT, UNRELIABLE", cutoffs),
            ("elements", " ".join(chemical_symbols[z] for z in card.elements)),
            ("promise", "no" if card.promise is None else "yes"),
        ]

    def with_card(self, **entries: Any) -> Probe:
        """Return the same networks with other entries on the card."""
        card = replace(self.card, **entries)
        return Probe(card, self.network, self.statistics, self.joined, self.seen)

    def with_seen(self, seen: Seen) -> Probe:
        """Return the same probe, which knows what it was made from."""
        return Probe(self.card, self.network, self.statistics, self.joined, seen)

    def check(self, backbone: Backbone) -> None:
        """Refuse a backbone that this probe was not fitted on.

        Raises
        ------
        ProbeError
            If the feature width or the fingerprint differs; it names both sides.
        """
        width = backbone.feature_dim
        if width is not None and width != self.card.feature_dim:
            msg = (
                f"probe must match the backbone's feature width, got a probe for "
                f"{self.card.feature_dim} features ({self.card.fingerprint}) and a "
                f"backbone with {width} ({backbone.fingerprint}); fit a probe for this "
                "backbone with uqcalc.fit"
            )
            raise ProbeError(msg)
        if not same_model(backbone.fingerprint, self.card.fingerprint):
            msg = (
                f"probe must belong to this backbone, got a probe for "
                f"{self.card.fingerprint} and the backbone {backbone.fingerprint}; "
                "load the model it was fitted on, or fit a probe with uqcalc.fit"
            )
            raise ProbeError(msg)

    def unseen_elements(self, numbers: np.ndarray) -> list[str]:
        """Return the symbols in ``numbers`` that were not in the labels.

        An imported official checkpoint does not say; it is taken at its word.
        """
        return self._seen.unseen(numbers)

    def reliability(
        self, predictions: Sequence[Prediction], boundary: float | None = None
    ) -> torch.Tensor:
        """Return P(error <= boundary), (structures,), for any boundary in its labels.

        It is NaN for a structure with an element that the labels lacked.

        Raises
        ------
        ProbeError
            If the boundary lies outside the errors of the labels; it names them.
        """
        found = self.read(predictions, boundary=boundary).reliability
        unseen = [bool(self.unseen_elements(p.numbers)) for p in predictions]
        return found.masked_fill(torch.tensor(unseen).to(found.device), torch.nan)

    def save(self, path: str | os.PathLike[str], *, half: bool = False) -> Path:
        """Write one safetensors file, whole or not at all.

        With ``half`` the centres of the kernels and the attention's weights are written
        in half precision: P moves by less than 0.01, the file is half as large.

        Raises
        ------
        RecordError, ProbeError
            As `check_output`: nothing but another probe is written over.
        """
        parts = (
            ("network", self.network),
            ("statistics", self.statistics),
            ("joined", self.joined),
        )
        tensors = {
            f"{name}.{key}": tensor
            for name, module in parts
            if module is not None
            for key, tensor in module.state_dict().items()
        }
        if half:
            tensors = {
                key: tensor.half() if _bulky(key) else tensor
                for key, tensor in tensors.items()
            }
        tensors |= {f"seen.{key}": kept for key, kept in self.seen.tensors().items()}
        return FILE.write(path, tensors, self.card.to_dict())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Probe:
        """Read a probe file.

        Raises
        ------
        ProbeError
            If it is not a probe, is truncated, or of a newer schema.
        """
        tensors, entries = FILE.read(path)
        card = Card.from_dict(entries)
        with NoDraws():
            network = ProbeNetwork(Shape.from_dict(card.shape))
        load_state(network, _section(tensors, "network."), str(path), ProbeError)
        statistics = None
        if state := _section(tensors, "statistics."):
            statistics = Statistics(card.feature_dim)
            load_state(statistics, state, str(path), ProbeError)
        joined = None
        if card.joined is not None:
            joined = Joined(JoinedShape.from_dict(card.joined))
            load_state(joined, _section(tensors, "joined."), str(path), ProbeError)
        seen = Seen.from_tensors(_section(tensors, "seen."))
        return cls(card, network, statistics, joined, seen)

    @classmethod
    def from_official(
        cls,
        path: str | os.PathLike[str],
        calculator: Any,
        *,
        target: str = "energy",
        atomic_energies: Mapping[int | str, float] | None = None,
        heads: int = 32,
    ) -> Probe:
        """Import a checkpoint of the released PROBE code; see `uqcalc.probe.official`.

        The file says nothing of its backbone, and not how many heads its attention
        has: by passing ``calculator`` and ``heads`` the user vouches for both.

        Parameters
        ----------
        atomic_energies : mapping, optional
            eV by atomic number or symbol that are taken off the predicted energy, as
            the released training of AIMNet2 probes does (`uqcalc.probe.released`). By
            default what an AIMNet2 model carries; nothing for other models.
        heads : int
            Of the attention; 32 in the released configurations. With another number the
            same weights give other probabilities.

        Raises
        ------
        ProbeError
            If the file is not such a checkpoint or does not fit the calculator, or
            for AIMNet2 whose atomic energies are not known or which adds dispersion.
        """
        from uqcalc.probe.official import import_official

        card, network = import_official(
            Path(path),
            calculator,
            target,
            atomic_energies=atomic_energies,
            heads=heads,
        )
        return cls(card, network, None)


def _section(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    start = len(prefix)
    return {k[start:]: v for k, v in tensors.items() if k.startswith(prefix)}


def _bulky(key: str) -> bool:
    """Say what may be rounded: not what distances and sums of many terms rest on."""
    return key.startswith("network.") or key.endswith((".centres", ".near"))


def check_output(path: str | os.PathLike[str]) -> Path:
    """Return where a probe may be written: a new file, or over another probe.

    Raises
    ------
    RecordError
        If the folder does not exist.
    ProbeError
        If the file is something else, such as the labelled frames.
    """
    return FILE.target(path)

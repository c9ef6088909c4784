"""A fitted probe: P(reliable) from predictions, stored in one safetensors file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.data import chemical_symbols

from uqcalc.backbones.base import Backbone
from uqcalc.backbones.batching import evaluate_each
from uqcalc.backbones.fingerprint import same_model
from uqcalc.backbones.prediction import Prediction
from uqcalc.backbones.registry import tap
from uqcalc.errors import ProbeError
from uqcalc.files.emptyweights import EmptyWeights
from uqcalc.files.entries import ElementsSeen
from uqcalc.files.tensorfile import CHECKSUM, load_state, metadata_of
from uqcalc.htmltable import html_table
from uqcalc.probe.addedpaths import AddedOutput, AddedPaths
from uqcalc.probe.batch import Batch, BatchPass
from uqcalc.probe.card import FILE, JOINED_ARCHITECTURE, RAW_ARCHITECTURE, Card
from uqcalc.probe.inputmaker import InputMaker
from uqcalc.probe.inputs import Statistics
from uqcalc.probe.network import ProbeNetwork, Shape
from uqcalc.probe.reading import (
    ProbeReading,
    atom_log_odds,
    novelty_and_charge_gap,
    probability,
    worst_atom,
)
from uqcalc.probe.seen import Seen
from uqcalc.probe.stacked import StackedOutput, StackedPaths, StackedShape
from uqcalc.quantities import parse_quantity


class Probe:
    """P(reliable) of structures from their predictions; can be saved to a file.

    Parameters
    ----------
    card : Card
    network : ProbeNetwork
    statistics : Statistics or None
        None for the published architecture, whose inputs are not standardised.
    stacked : StackedPaths or None
        The other paths of the default architecture.
    seen : Seen, optional
        Geometries and groups used for fit and calibration.
    added : AddedPaths, optional
        Corrections from labels that were added to a prior.

    Attributes
    ----------
    file : (name, checksum) or None
        Name of the file that it was read from, and the checksum in it.

    Raises
    ------
    ProbeError
        If statistics, stacked paths or corrections do not match the card.
    """

    def __init__(
        self,
        card: Card,
        network: ProbeNetwork,
        statistics: Statistics | None,
        stacked: StackedPaths | None = None,
        seen: Seen | None = None,
        added: AddedPaths | None = None,
    ) -> None:
        if (added is None) != (card.added is None) or (added and not stacked):
            msg = (
                "added labels must be on the card and in the tensors of a probe with "
                "several paths, got one of them; the file is damaged, fit the probe "
                "again"
            )
            raise ProbeError(msg)
        if (stacked is None) == (card.architecture == JOINED_ARCHITECTURE):
            msg = (
                f"probe of architecture {card.architecture!r} must "
                f"{'not ' if stacked else ''}have kernel paths; the file is damaged, "
                "fit the probe again"
            )
            raise ProbeError(msg)
        if (statistics is None) != (card.architecture == RAW_ARCHITECTURE):
            msg = (
                f"probe of architecture {card.architecture!r} must "
                f"{'not ' if statistics else ''}have input statistics; the file is "
                "damaged, fit the probe again"
            )
            raise ProbeError(msg)
        self.card = card
        # always float32: MACE may have changed torch's default dtype
        self.network = network.eval().float().requires_grad_(requires_grad=False)
        self.statistics = None if statistics is None else statistics.float()
        self.stacked = None if stacked is None else stacked.float()
        self.added = None if added is None else added.float()
        self.file: tuple[str, str] | None = None
        self._inputs = InputMaker(card, self.statistics, self.stacked)
        self.seen = Seen.nothing() if seen is None else seen
        self._elements = ElementsSeen(card.elements)

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
            ("guarantee", "no" if card.promise is None else "yes"),
            *([] if card.added is None else [("prior", card.added.name or "unnamed")]),
        ]

    def with_card(self, **entries: Any) -> Probe:
        """Return a probe with the same networks and changed entries on the card."""
        return self._copy(replace(self.card, **entries), self.seen)

    def _copy(self, card: Card, seen: Seen) -> Probe:
        return Probe(
            card, self.network, self.statistics, self.stacked, seen, self.added
        )

    def at(self, boundary: float | str) -> Probe:
        """Return the same probe with another boundary.

        It is a number in the unit of the card, or a text with a unit, such as
        "50 meV/angstrom".

        Raises
        ------
        LabelError
            If a text is no quantity of the target.
        ProbeError
            If the boundary lies outside the errors of the labels.
        """
        if isinstance(boundary, str):
            boundary = parse_quantity(boundary, self.card.target)
        if boundary == self.card.boundary:
            return self
        calibration = self.card.calibration.at(boundary, self.card.unit)
        added = self.card.added
        return self.with_card(
            boundary=boundary,
            percentile=None,
            calibration=calibration,
            added=None if added is None else added.at(boundary, self.card.unit),
            held_out=[],
        )

    def with_seen(self, seen: Seen) -> Probe:
        """Return the same probe with a record of its labelled structures."""
        return self._copy(self.card, seen)

    def check(self, backbone: Backbone) -> None:
        """Check that this probe was fitted on the backbone.

        Raises
        ------
        ProbeError
            If the feature width or the fingerprint differs; the message names both.
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

    @property
    def reads_stress(self) -> bool:
        """Whether the predicted stress is an input: molecules then have no P."""
        return self.stacked is not None and self.stacked.shape.stress

    def unseen_elements(self, numbers: np.ndarray) -> list[str]:
        """Return the symbols of the elements in ``numbers`` that the labels lack.

        Empty for an imported checkpoint without a list of elements.
        """
        return self._elements.unseen(numbers)

    def reliability(
        self, predictions: Sequence[Prediction], boundary: float | None = None
    ) -> torch.Tensor:
        """Return P(error <= boundary), (structures,).

        The boundary is in the unit of the card; by default it is the card's. The value
        is NaN for a structure with an element that the labels lack.

        Raises
        ------
        ProbeError
            If the boundary lies outside the errors of the labels; the message gives
            their range.
        """
        found = self.read(predictions, boundary=boundary).reliability
        unseen = [bool(self.unseen_elements(p.numbers)) for p in predictions]
        return found.masked_fill(torch.tensor(unseen).to(found.device), torch.nan)

    def __call__(
        self, predictions: Sequence[Prediction], *, importance: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return P(reliable) of a ragged batch, on the device of its features.

        Returns
        -------
        reliability : tensor (structures,)
            Calibrated P(reliable), float32.
        importance : tensor (atoms of all structures,) or None
            Attention received, summing to 1 over each structure.
        """
        reading = self.read(predictions, importance=importance)
        return reading.reliability, reading.importance

    def read(
        self,
        predictions: Sequence[Prediction],
        *,
        importance: bool = False,
        boundary: float | None = None,
        other: float | None = None,
    ) -> ProbeReading:
        """Return all outputs of the probe for a ragged batch.

        Parameters
        ----------
        predictions : sequence of Prediction
        importance : bool
            Whether to compute the importance of the atoms.
        boundary : float, optional
            Boundary of ``reliability``, in the unit of the card; by default the card's.
        other : float, optional
            Second boundary; its probability is ``ProbeReading.other``.
        """
        with torch.inference_mode():
            batch = self._batch(predictions)
        return self.read_batch(
            batch, importance=importance, boundary=boundary, other=other
        )

    def read_batch(
        self,
        batch: Batch,
        *,
        importance: bool = False,
        boundary: float | None = None,
        other: float | None = None,
    ) -> ProbeReading:
        """Return all outputs of the probe for a batch; arguments as for `read`.

        Without ``importance`` the function does not wait for the device.
        """
        if boundary == self.card.boundary:
            boundary = None
        card = self.card
        with torch.inference_mode():
            margin, stacked, received = self._paths(batch, explain=importance)
            score = margin if stacked is None else stacked.score
            added = self._added(batch, stacked)
            reliability = probability(card, score, boundary, added)
            beside = None
            if other is not None:
                beside = probability(card, score, other, added)
            if stacked is None:
                return ProbeReading(reliability, received, other=beside)
            atoms = atom_log_odds(card, stacked, batch.sizes, added)
            worst = None
            if atoms is not None:
                worst = worst_atom(card, atoms, batch, added)
                atoms = atoms.sigmoid()
            parts = card.calibration.slope * stacked.parts
            novelty, gap = novelty_and_charge_gap(card.scope, batch, stacked, added)
        weight = None if added is None else added.weight
        return ProbeReading(
            reliability, received, atoms, parts, novelty, gap, worst, beside, weight
        )

    def batch_of(self, given: BatchPass) -> Batch:
        """Return the inputs of many systems from one pass; all stays on the device."""
        self._move_to(given.features.device)
        with torch.inference_mode():
            return self._inputs.of_pass(given)

    def _added(self, batch: Batch, stacked: StackedOutput | None) -> AddedOutput | None:
        """Return the output of the labels that were added to a prior, if any were."""
        record = self.card.added
        if self.added is None or record is None:
            return None
        if stacked is None or stacked.described is None:
            msg = "inputs of the paths must be there for added labels, got None"
            raise ValueError(msg)
        found: AddedOutput = self.added(
            stacked.described, batch.features, batch.numbers, batch.sizes, record.scope
        )
        return found

    def scores(self, predictions: Sequence[Prediction]) -> torch.Tensor:
        """Return the uncalibrated scores, (structures,): larger is more reliable."""
        with torch.inference_mode():
            margin, stacked, _ = self._paths(self._batch(predictions), explain=False)
            return margin if stacked is None else stacked.score

    def embeddings(
        self,
        frames: Sequence[Atoms],
        calculator: Any,
        *,
        batch_atoms: int | None = None,
    ) -> np.ndarray:
        """Return the network's vector of each structure, (structures, embedding).

        The classifier of the network reads this vector (arXiv:2605.00640); structures
        with similar vectors get a similar attention path. It has as many numbers as
        ``card.shape["embedding"]`` says, 256 in the published network. A frame that the
        potential cannot evaluate has a row of NaN.

        Parameters
        ----------
        frames : sequence of Atoms
        calculator : ase calculator, Backbone or ReliableCalculator
            The potential of the probe.
        batch_atoms : int, optional
            Largest number of atoms in one native batch; by default that of the
            potential.

        Raises
        ------
        ProbeError
            If the probe belongs to another potential.
        """
        wrapped = hasattr(calculator, "assess")  # a ReliableCalculator
        backbone = tap(calculator.backbone if wrapped else calculator)
        self.check(backbone)
        wanted = ["energy", "forces", *(["stress"] if self.reads_stress else [])]
        rows = np.full((len(frames), self.network.shape.embedding), np.nan)
        outcomes = evaluate_each(backbone, frames, wanted, limit=batch_atoms)
        for row, (_, outcome) in enumerate(outcomes):
            if not isinstance(outcome, str):
                with torch.inference_mode():
                    found = self.network(*self.inputs([outcome])).embedding
                rows[row] = found[0].cpu().numpy()
        return rows

    def path_output(self, predictions: Sequence[Prediction]) -> StackedOutput:
        """Return the outputs of all paths.

        Raises
        ------
        ProbeError
            If the probe has only one path.
        """
        with torch.inference_mode():
            stacked = self._paths(self._batch(predictions), explain=False)[1]
        if stacked is None:
            msg = (
                "probe must have several paths, got the architecture "
                f"{self.card.architecture!r}"
            )
            raise ProbeError(msg)
        return stacked

    def _paths(
        self, batch: Batch, *, explain: bool
    ) -> tuple[torch.Tensor, StackedOutput | None, torch.Tensor | None]:
        given = self._inputs.standard(batch)
        output = self.network(*given[:4], explain=explain)
        margin = output.logits[:, 0] - output.logits[:, 1]
        stacked = None
        if self.stacked is not None and self.statistics is not None:
            if given.distances is None or given.host is None:
                msg = "distances must be there where there are statistics, got None"
                raise ProbeError(msg)
            stacked = self.stacked(
                given.host, given.features, given.distances, self.statistics, margin
            )
        return margin, stacked, output.importance

    def inputs(
        self, predictions: Sequence[Prediction]
    ) -> tuple[torch.Tensor, Sequence[int], torch.Tensor, torch.Tensor | None]:
        """Return the network's inputs: (features, sizes, scalars, charges)."""
        return self._inputs.standard(self._batch(predictions))[:4]

    def _batch(self, predictions: Sequence[Prediction]) -> Batch:
        self._move_to(predictions[0].features.device)
        return self._inputs.of_predictions(predictions)

    def _move_to(self, device: torch.device) -> None:
        if self.network.proj.weight.device != device:
            # weights that are moved in inference mode cannot be used by autograd later
            with torch.inference_mode(mode=False):
                self.network.to(device)
                for module in (self.statistics, self.stacked, self.added):
                    if module is not None:
                        module.to(device)

    def save(self, path: str | os.PathLike[str], *, half: bool = False) -> Path:
        """Write one safetensors file. A failed write leaves no partial file.

        With ``half`` the kernel centres and the attention's weights are written in half
        precision: P changes by less than 0.01, and the file is half as large.

        Raises
        ------
        RecordError, ProbeError
            As in `check_output`: an existing file is replaced only if it is a probe.
        """
        parts = (
            ("network", self.network),
            ("statistics", self.statistics),
            ("joined", self.stacked),
            ("added", self.added),
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
        return self.card.write(path, tensors)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Probe:
        """Read a probe file.

        Raises
        ------
        ProbeError
            If the file is not a probe, is truncated, or has a newer schema.
        """
        card, tensors = Card.read(path)
        with EmptyWeights():
            network = ProbeNetwork(Shape.from_dict(card.shape))
        load_state(network, _section(tensors, "network."), str(path), ProbeError)
        statistics = None
        if state := _section(tensors, "statistics."):
            statistics = Statistics(card.feature_dim)
            load_state(statistics, state, str(path), ProbeError)
        stacked = None
        if card.joined is not None:
            stacked = StackedPaths(StackedShape.from_dict(card.joined))
            load_state(stacked, _section(tensors, "joined."), str(path), ProbeError)
        added = None
        if stacked is not None and card.added is not None:
            sizes = (card.added.centres, card.added.atom_centres)
            shape = replace(stacked.shape, centres=sizes[0], atom_centres=sizes[1])
            added = AddedPaths(shape, stacked.numbers.components)
            load_state(added, _section(tensors, "added."), str(path), ProbeError)
        seen = Seen.from_tensors(_section(tensors, "seen."))
        probe = cls(card, network, statistics, stacked, seen, added)
        probe.file = Path(path).name, (metadata_of(path) or {}).get(CHECKSUM, "")
        return probe

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

        The file does not contain the backbone or the number of attention heads. The
        user must make sure that ``calculator`` and ``heads`` are right.

        Parameters
        ----------
        atomic_energies : mapping, optional
            eV by atomic number or symbol, subtracted from the predicted energy as in
            the released training of AIMNet2 probes (`uqcalc.probe.official`). By
            default the atomic shifts of an AIMNet2 model; nothing for other models.
        heads : int
            Heads of the attention; 32 in the released configurations. With a wrong
            number the probabilities are wrong.

        Raises
        ------
        ProbeError
            If the file is not such a checkpoint or does not match the calculator. For
            AIMNet2, if the atomic energies are unknown or the model adds dispersion.
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
    """Return whether a tensor may be rounded without a large change of P."""
    return key.startswith("network.") or key.endswith((".centres", ".near"))


def check_output(path: str | os.PathLike[str]) -> Path:
    """Return the path if a probe may be written there: a new file or another probe.

    Raises
    ------
    RecordError
        If the folder does not exist.
    ProbeError
        If the file is something else, such as the labelled frames.
    """
    return FILE.target(path)


def check_probe(probe: object) -> None:
    """Raise an error for anything but a probe, such as the path of its file.

    Raises
    ------
    TypeError
    """
    if not isinstance(probe, Probe):
        msg = (
            f"probe must be a Probe, got {type(probe).__name__}; open its file first: "
            'Probe.load("my.probe")'
        )
        raise TypeError(msg)

"""A fitted probe: network, input statistics and card in one safetensors file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from uqcalc.backbones.base import Backbone, Prediction
from uqcalc.backbones.fingerprint import same_model
from uqcalc.elements import ElementsSeen
from uqcalc.errors import ProbeError
from uqcalc.probe.card import RAW_ARCHITECTURE, Card
from uqcalc.probe.inputs import Statistics, host_scalars, raw_scalars
from uqcalc.probe.network import ProbeNetwork, Shape
from uqcalc.tensorfile import Kind, load_state


FILE = Kind(
    name="probe",
    key="uqcalc_probe",
    error=ProbeError,
    make="fit one with uqcalc.fit",
    otherwise="copy it again, or use Probe.from_official for a checkpoint of the PROBE "
    "authors",
)


class Probe:
    """P(reliable) of structures from their predictions.

    Parameters
    ----------
    card : Card
    network : ProbeNetwork
    statistics : Statistics or None
        None for the published layout, whose inputs enter raw.
    """

    def __init__(
        self, card: Card, network: ProbeNetwork, statistics: Statistics | None
    ) -> None:
        if (statistics is None) != (card.architecture == RAW_ARCHITECTURE):
            msg = (
                f"probe of architecture {card.architecture!r} must "
                f"{'not ' if statistics else ''}have input statistics; the file is "
                "damaged, fit the probe again"
            )
            raise ProbeError(msg)
        self.card = card
        # float32 whatever torch's default dtype is: MACE may have changed that
        self.network = network.eval().float().requires_grad_(requires_grad=False)
        self.statistics = None if statistics is None else statistics.float()
        self._atom_energies = card.element_energies()
        self._seen = ElementsSeen(card.elements)

    def __call__(
        self, predictions: Sequence[Prediction], *, importance: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Read a ragged batch of structures on the device of their features.

        Returns
        -------
        reliability : tensor (structures,)
            Calibrated P(reliable), float32.
        importance : tensor (atoms of all structures,) or None
            Attention received, summing to 1 over each structure.
        """
        slope, intercept = self.card.calibration
        with torch.inference_mode():
            output = self.network(*self.inputs(predictions), explain=importance)
            margin = output.logits[:, 0] - output.logits[:, 1]
            reliability = torch.sigmoid(slope * margin + intercept)
        return reliability, output.importance

    def inputs(
        self, predictions: Sequence[Prediction]
    ) -> tuple[torch.Tensor, list[int], torch.Tensor, torch.Tensor | None]:
        """Return (features, sizes, scalars, charges) as the network takes them."""
        sizes = [len(p.numbers) for p in predictions]
        features = _join([p.features for p in predictions])
        self._move_to(features.device)
        charges = None
        if self.card.charges:
            charges = _join([_charges(p) for p in predictions])
        if self.statistics is None:
            raw = [raw_scalars(p.energy, len(p.numbers)) for p in predictions]
            return features, sizes, _tensor(raw, features.device), charges
        host = [
            host_scalars(p.numbers, p.energy, p.forces, self._atom_energies)
            for p in predictions
        ]
        numbers = np.concatenate([p.numbers for p in predictions])
        index = _on(features.device, numbers)
        standard = self.statistics.features(features)
        distances = self.statistics.distances(standard, index)
        scalars = self.statistics.scalars(
            _tensor(host, features.device), distances, sizes
        )
        return standard, sizes, scalars, charges

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

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write one safetensors file, whole or not at all.

        Raises
        ------
        RecordError, ProbeError
            As `check_output`: nothing but another probe is written over.
        """
        tensors = {f"network.{k}": v for k, v in self.network.state_dict().items()}
        if self.statistics is not None:
            state = self.statistics.state_dict()
            tensors |= {f"statistics.{k}": v for k, v in state.items()}
        return FILE.write(path, tensors, self.card.to_dict())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Probe:
        """Read a probe file.

        Raises
        ------
        ProbeError
            If it is not a probe, is truncated, or of a newer schema.
        """
        tensors, metadata = FILE.read(path)
        card = Card.from_dict(FILE.card(path, metadata))
        network = ProbeNetwork(Shape.from_dict(card.shape))
        load_state(network, _section(tensors, "network."), str(path), ProbeError)
        statistics = None
        if state := _section(tensors, "statistics."):
            statistics = Statistics(card.feature_dim)
            load_state(statistics, state, str(path), ProbeError)
        return cls(card, network, statistics)

    @classmethod
    def from_official(
        cls, path: str | os.PathLike[str], calculator: Any, *, target: str = "energy"
    ) -> Probe:
        """Import a checkpoint of the released PROBE code; see `uqcalc.probe.official`.

        The file says nothing of its backbone: by passing ``calculator`` the user
        vouches that it is the one.
        """
        from uqcalc.probe.official import import_official

        card, network = import_official(Path(path), calculator, target)
        return cls(card, network, None)

    def _move_to(self, device: torch.device) -> None:
        if self.network.proj.weight.device != device:
            # weights moved in inference mode would stay barred from autograd
            with torch.inference_mode(mode=False):
                self.network.to(device)
                if self.statistics is not None:
                    self.statistics.to(device)


def _charges(prediction: Prediction) -> torch.Tensor:
    if prediction.charges is None:
        msg = (
            "prediction must carry charges for a probe with a charge layer, got none; "
            "wrap the calculator the probe was fitted on"
        )
        raise ProbeError(msg)
    return prediction.charges


def _join(rows: Sequence[torch.Tensor]) -> torch.Tensor:
    joined = rows[0] if len(rows) == 1 else torch.cat(list(rows))
    return joined.to(torch.float32)


def _tensor(rows: Sequence[np.ndarray], device: torch.device) -> torch.Tensor:
    return _on(device, np.stack(rows))


def _on(device: torch.device, array: np.ndarray) -> torch.Tensor:
    """Copy to the device; CUDA has read the array on return and is not waited for."""
    return torch.from_numpy(array).to(device, non_blocking=device.type == "cuda")


def _section(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    start = len(prefix)
    return {k[start:]: v for k, v in tensors.items() if k.startswith(prefix)}


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

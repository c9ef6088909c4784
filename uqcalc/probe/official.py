"""Checkpoints of the released PROBE code (isayevlab/PROBE), read without pickle."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from uqcalc.backbones.base import Backbone
from uqcalc.backbones.registry import tap
from uqcalc.errors import ProbeError
from uqcalc.nodraws import NoDraws
from uqcalc.probe.card import RAW_ARCHITECTURE, Card
from uqcalc.probe.network import ProbeNetwork, Shape


_ARRAY = np.zeros(1)
_REBUILD = {
    "_reconstruct": _ARRAY.__reduce__()[0],
    "scalar": _ARRAY[0].__reduce__()[0],
}


def import_official(
    path: Path, calculator: Any, target: str
) -> tuple[Card, ProbeNetwork]:
    """Return card and network of an official checkpoint, with or without charges.

    Raises
    ------
    ProbeError
        If the file is not such a checkpoint, or does not fit the calculator.
    """
    content = _load(path)
    state = content.get("model_state_dict")
    bins = content.get("error_bins")
    if not isinstance(state, dict) or bins is None or len(bins) < 2:
        msg = (
            f"{path} must hold model_state_dict and error_bins=[0, boundary in eV], "
            f"got {sorted(map(str, content))}; use Probe.load for a probe of uqcalc"
        )
        raise ProbeError(msg)
    backbone: Backbone = tap(calculator)
    shape = _shape(state, path)
    with NoDraws():
        network = ProbeNetwork(shape)
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        msg = f"{path} must have the layers of the published network, got: {error}"
        raise ProbeError(msg) from error
    if backbone.feature_dim != shape.features:
        msg = (
            f"checkpoint must match the backbone's feature width, got {shape.features} "
            f"in {path} and {backbone.feature_dim} from {backbone.fingerprint}; pass "
            "the calculator it was trained on"
        )
        raise ProbeError(msg)
    card = Card(
        fingerprint=backbone.fingerprint,
        target=target,
        boundary=float(bins[1]),
        architecture=RAW_ARCHITECTURE,
        shape=shape.to_dict(),
        elements=[],
        sizes=[],
        training={"epoch": int(content.get("epoch", -1))},
        description="imported official checkpoint; its backbone was asserted by the "
        "user, its probability is not calibrated here",
    )
    return card, network


def _load(path: Path) -> dict[str, Any]:
    if not (path.is_file() and zipfile.is_zipfile(path)):
        got = "a file that is not one" if path.is_file() else "no such file"
        msg = (
            f"{path} must be a whole checkpoint written by torch.save, got {got}; copy "
            "it again, or use Probe.load for a probe of uqcalc"
        )
        raise ProbeError(msg)
    try:
        with torch.serialization.safe_globals(_numpy_constructors()):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        msg = (
            f"{path} must be a PyTorch checkpoint of tensors and arrays only, got: "
            f"{_reason(error)}; ask its authors for one without code in it"
        )
        raise ProbeError(msg) from error
    if not isinstance(content, dict):
        msg = f"{path} must hold a dictionary, got {type(content).__name__}"
        raise ProbeError(msg)
    return content


def _numpy_constructors() -> list[Any]:
    """Return what ``val_metrics`` needs to rebuild its arrays, and nothing else.

    The functions moved between numpy 1 and 2; either home may be in the file.
    """
    kinds = [np.dtype(code) for code in np.typecodes["AllInteger"] + "?efd"]
    allowed: list[Any] = [np.ndarray, np.dtype, *{type(kind) for kind in kinds}]
    for home in ("numpy.core.multiarray", "numpy._core.multiarray"):
        allowed += [(function, f"{home}.{name}") for name, function in _REBUILD.items()]
    return allowed


def _reason(error: Exception) -> str:
    """Pick the line that names the culprit out of torch's long message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if "GLOBAL" in line), (lines or ["nothing"])[0])


def _shape(state: dict[str, torch.Tensor], path: Path) -> Shape:
    first = state.get("atom_encoder.0.weight")
    if first is None:
        msg = f"{path} must have atom_encoder.0.weight, got {sorted(state)[:5]} ..."
        raise ProbeError(msg)
    return Shape(features=first.shape[1], charges="charge_proj.0.weight" in state)

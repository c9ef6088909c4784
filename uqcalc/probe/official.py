"""Checkpoints of the released PROBE code (isayevlab/PROBE), read without pickle."""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch

from uqcalc.backbones.base import Backbone
from uqcalc.backbones.registry import tap
from uqcalc.errors import ProbeError
from uqcalc.probe.card import Card
from uqcalc.probe.network import ProbeNetwork, Shape


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
            f"{path} must hold model_state_dict and error_bins=[0, boundary in eV], got "
            f"{sorted(content)}; use Probe.load for a probe of uqcalc"
        )
        raise ProbeError(msg)
    backbone: Backbone = tap(calculator)
    shape = _shape(state, path)
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
    boundary = float(bins[1])
    if not (math.isfinite(boundary) and boundary > 0):
        msg = f"boundary must be finite and positive, got {boundary} eV in {path}"
        raise ProbeError(msg)
    card = Card(
        fingerprint=backbone.fingerprint,
        target=target,
        boundary=boundary,
        architecture="probe-2026",
        shape=shape.to_dict(),
        elements=[],
        sizes=[],
        training={"epoch": int(content.get("epoch", -1))},
        description="imported official checkpoint; its backbone was asserted by the "
        "user, its probability is not calibrated here",
    )
    return card, network


def _load(path: Path) -> dict[str, Any]:
    # val_metrics holds numpy arrays; exactly their constructors are allowed
    allowed: list[Any] = [np.ndarray, np.dtype, type(np.dtype(np.float64))]
    allowed += [type(np.dtype(kind)) for kind in (np.float32, np.int64, np.bool_)]
    for function in (
        np._core.multiarray._reconstruct,  # type: ignore[attr-defined]
        np._core.multiarray.scalar,  # type: ignore[attr-defined]
    ):
        name = function.__name__
        allowed += [function, (function, f"numpy.core.multiarray.{name}")]
    try:
        with torch.serialization.safe_globals(allowed):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        msg = (
            f"{path} must be a PyTorch checkpoint of tensors and arrays only, got: "
            f"{error}; ask its authors for one without code in it"
        )
        raise ProbeError(msg) from error
    if not isinstance(content, dict):
        msg = f"{path} must hold a dictionary, got {type(content).__name__}"
        raise ProbeError(msg)
    return content


def _shape(state: dict[str, torch.Tensor], path: Path) -> Shape:
    first = state.get("atom_encoder.0.weight")
    if first is None:
        msg = f"{path} must have atom_encoder.0.weight, got {sorted(state)[:5]} ..."
        raise ProbeError(msg)
    return Shape(features=first.shape[1], charges="charge_proj.0.weight" in state)

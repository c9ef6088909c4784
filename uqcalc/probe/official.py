"""Checkpoints of the released PROBE code (isayevlab/PROBE), read without pickle."""

from __future__ import annotations

import math
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase.data import atomic_numbers, chemical_symbols

from uqcalc.backbones.aimnet2 import AIMNet2Backbone
from uqcalc.backbones.base import Backbone
from uqcalc.backbones.registry import tap
from uqcalc.errors import ProbeError
from uqcalc.files.emptyweights import EmptyWeights
from uqcalc.probe.card import RAW_ARCHITECTURE, Card
from uqcalc.probe.network import ProbeNetwork, Shape


_ADVICE = (
    "atomic_energies={element: eV} must be given for a published probe on AIMNet2, "
    "got none and a model without atomic energies: the released training subtracts "
    "them from the energy; pass those of the model's training (its .sae file), or "
    "zeros if its energies are without them"
)


def released_energies(
    backbone: Backbone,
    given: Mapping[int | str, float] | None,
    *,
    charges: bool = False,
) -> dict[str, float]:
    """Return the atomic energies to subtract from the predicted energy, in eV.

    The released training of AIMNet2 probes (isayevlab/PROBE, ``train_aimnet2.py``) uses
    the network before its export. Export adds atomic energies from a linear regression
    and dispersion; both are absent in that training. The training of MACE probes
    subtracts nothing.

    Parameters
    ----------
    backbone : Backbone
    given : mapping or None
        eV by atomic number or symbol. By default AIMNet2's own atomic shifts, which
        are these energies as changed by training; nothing for other models.
    charges : bool
        Whether the probe needs charges; released probes do for AIMNet2 only.

    Returns
    -------
    dict
        eV by atomic number, as in a `Card`; empty if nothing is subtracted.

    Raises
    ------
    ProbeError
        For AIMNet2, if the atomic energies are unknown or the energy includes a
        dispersion correction. If ``given`` has an unknown element or an energy that is
        not finite.
    """
    of_aimnet2 = isinstance(backbone, AIMNet2Backbone)
    if isinstance(backbone, AIMNet2Backbone) and backbone.has_dispersion:
        msg = (
            "AIMNet2 model must be without dispersion for a published probe, as in "
            "the released training, got a model that adds dispersion; build it with "
            "AIMNet2Calculator(..., needs_dispersion=False) and add the correction "
            "as another calculator: SumCalculator([AIMNet2ASE(...), ...])"
        )
        raise ProbeError(msg)
    if given is not None:
        return dict(_entry(element, energy) for element, energy in given.items())
    if isinstance(backbone, AIMNet2Backbone) and backbone.atomic_shifts:
        return {str(z): energy for z, energy in backbone.atomic_shifts.items()}
    if of_aimnet2 or charges:
        raise ProbeError(_ADVICE)
    return {}


def _entry(element: int | str, energy: float) -> tuple[str, float]:
    known = element if isinstance(element, int) else atomic_numbers.get(element, 0)
    if isinstance(element, bool) or not 0 < known < len(chemical_symbols):
        msg = (
            "atomic_energies must have atomic numbers or symbols as keys, got "
            f"{element!r}; write {{1: -13.6}} or {{'H': -13.6}}"
        )
        raise ProbeError(msg)
    if not (isinstance(energy, int | float) and math.isfinite(energy)):
        msg = (
            f"atomic energy of {chemical_symbols[known]} must be a finite number in "
            f"eV, got {energy!r}; correct it"
        )
        raise ProbeError(msg)
    return str(int(known)), float(energy)


HEADS = 32  # attention heads of the released configurations
_ARRAY = np.zeros(1)
_REBUILD = {
    "_reconstruct": _ARRAY.__reduce__()[0],
    "scalar": _ARRAY[0].__reduce__()[0],
}


def import_official(
    path: Path,
    calculator: Any,
    target: str,
    *,
    atomic_energies: Mapping[int | str, float] | None = None,
    heads: int = HEADS,
) -> tuple[Card, ProbeNetwork]:
    """Return card and network of an official checkpoint, with or without charges.

    Raises
    ------
    ProbeError
        If the file is not such a checkpoint, does not match the calculator, or is for
        AIMNet2 and the atomic energies are unknown (`released_energies`).
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
    shape = _shape(state, path, heads)
    with EmptyWeights():
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
    energies = released_energies(backbone, atomic_energies, charges=shape.charges)
    card = Card(
        fingerprint=backbone.fingerprint,
        target=target,
        boundary=float(bins[1]),
        architecture=RAW_ARCHITECTURE,
        shape=shape.to_dict(),
        elements=sorted(map(int, energies)),
        sizes=[],
        atom_energies=energies,
        training={"epoch": int(content.get("epoch", -1))},
        description=(
            f"imported official checkpoint; its backbone and its {heads} attention "
            "heads were given by the user (the file has neither), its probability "
            f"was not calibrated by uqcalc; {_taken_off(energies)}"
        ),
    )
    return card, network


def _load(path: Path) -> dict[str, Any]:
    if not (path.is_file() and zipfile.is_zipfile(path)):
        got = "another file" if path.is_file() else "no such file"
        msg = (
            f"{path} must be a complete checkpoint written by torch.save, got {got}; "
            "copy it again, or use Probe.load for a probe of uqcalc"
        )
        raise ProbeError(msg)
    try:
        with torch.serialization.safe_globals(_numpy_constructors()):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        msg = (
            f"{path} must be a PyTorch checkpoint of tensors and arrays only, got: "
            f"{_reason(error)}; ask its authors for a checkpoint without code"
        )
        raise ProbeError(msg) from error
    if not isinstance(content, dict):
        msg = f"{path} must hold a dictionary, got {type(content).__name__}"
        raise ProbeError(msg)
    return content


def _numpy_constructors() -> list[Any]:
    """Return the constructors that are needed to load the arrays of ``val_metrics``.

    The module of the functions differs between numpy 1 and 2; a file may name either.
    """
    kinds = [np.dtype(code) for code in np.typecodes["AllInteger"] + "?efd"]
    allowed: list[Any] = [np.ndarray, np.dtype, *{type(kind) for kind in kinds}]
    for home in ("numpy.core.multiarray", "numpy._core.multiarray"):
        allowed += [(function, f"{home}.{name}") for name, function in _REBUILD.items()]
    return allowed


def _reason(error: Exception) -> str:
    """Return the line of torch's long message that names the refused object."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if "GLOBAL" in line), (lines or ["nothing"])[0])


def _taken_off(energies: dict[str, float]) -> str:
    if not energies:
        return "it reads the total predicted energy"
    symbols = " ".join(chemical_symbols[int(z)] for z in energies)
    return f"it reads the predicted energy minus atomic energies of {symbols}"


def _shape(state: dict[str, torch.Tensor], path: Path, heads: int) -> Shape:
    first = state.get("atom_encoder.0.weight")
    if first is None:
        msg = f"{path} must have atom_encoder.0.weight, got {sorted(state)[:5]} ..."
        raise ProbeError(msg)
    shape = Shape(
        features=first.shape[1], charges="charge_proj.0.weight" in state, heads=heads
    )
    whole = isinstance(heads, int) and not isinstance(heads, bool)
    if not whole or heads < 1 or shape.width % heads:
        msg = (
            f"heads must be a whole number that divides {shape.width}, got {heads!r}; "
            f"the released configuration has mol_attention_heads={HEADS}"
        )
        raise ProbeError(msg)
    return shape

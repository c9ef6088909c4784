"""Check the contract of a signal."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
from ase.outputs import all_outputs

from uqcalc.backbones.base import Prediction
from uqcalc.records import Reading
from uqcalc.signals.base import Signal, TensorReading, to_host
from uqcalc.testing.clauses import ContractError, Limits, to_array


# Quantities that a signal reads: NaN in one of them must give a NaN risk.
_POISONED = (
    "features",
    "charges",
    "forces",
    "committee_forces",
    "committee_energies",
    "committee_stresses",
    "expected_errors",
    "energy_uncertainties",
)


def check_signal(signal: Signal, prediction: Prediction) -> None:
    """Check the contract of a signal, on a prediction that it can read.

    Raises
    ------
    ContractError
        At the first clause that does not hold.
    """
    limits = Limits()
    named = isinstance(signal.name, str) and bool(signal.name)
    limits.require("name", named, f"must be a word, got {signal.name!r}")
    listed = isinstance(signal.requires, frozenset)
    limits.require("requires", listed, f"must be a frozenset, got {signal.requires!r}")
    before = copy.deepcopy(prediction)
    first, second = _read(signal, prediction), _read(signal, prediction)
    for name in ("features", "forces", "positions"):
        ours, theirs = getattr(prediction, name), getattr(before, name)
        limits.same("pure", ours, theirs, f"{name}, after the signal,")
    limits.same("pure", first.risk, second.risk, "risk, read twice,")
    own = {key for key in first.results if key in (*all_outputs, *prediction.results)}
    message = f"keys must be the signal's own, got the calculator's {sorted(own)}"
    limits.require("results", not own, message)
    _check_reading(signal, first, len(prediction.numbers), limits)
    for name in _POISONED:
        value = getattr(prediction, name)
        if name in signal.requires and value is not None:
            poisoned = copy.deepcopy(value)
            poisoned[..., -1] = float("nan")  # the last component of every atom
            risk = float(_read(signal, replace(prediction, **{name: poisoned})).risk)
            message = f"risk must be NaN where {name} are, got {risk}"
            limits.require("nan", bool(np.isnan(risk)), message)


def _check_reading(
    signal: Signal, reading: TensorReading, atoms: int, limits: Limits
) -> None:
    message = f"must be named {signal.name!r}, got {reading.signal!r}"
    limits.require("reading", reading.signal == signal.name, message)
    shape = np.shape(to_array(reading.risk))
    limits.require("risk", shape == (), f"must be one number, got shape {shape}")
    (host,) = to_host([reading])
    for name, value in host.results.items():
        array = np.asarray(value)
        fits = array.dtype.kind in "biuf" and (
            array.ndim == 0 or (array.ndim <= 2 and len(array) == atoms)
        )
        message = f"{name!r} must be a number or have a row for each of {atoms} atoms"
        limits.require("results", fits, message)
    key = host.per_atom_key
    if key is not None:
        message = f"per_atom_key must be one of {sorted(host.results)}, got {key!r}"
        limits.require("per atom", key in host.results, message)
        shape = np.shape(host.results[key])
        message = f"{key!r} must have shape ({atoms},), got {shape}"
        limits.require("per atom", shape == (atoms,), message)


def _read(signal: Signal, prediction: Prediction) -> TensorReading:
    reading = signal(prediction)
    if not isinstance(reading, Reading):
        message = f"must be a TensorReading, got {type(reading).__name__}"
        raise ContractError("reading", message)
    return reading

"""The signal protocol, and the copy of readings from the device to the host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch

from uqcalc.backbones.base import Backbone, Prediction
from uqcalc.records import Reading


# A reading with tensors on one device, or numbers and arrays on the host.
if TYPE_CHECKING:
    TensorReading: TypeAlias = Reading[torch.Tensor | float]
else:
    TensorReading = Reading  # one class, so that `isinstance` works


@runtime_checkable
class Signal(Protocol):
    """A pure function of one `Prediction`; it never calls the backbone.

    Attributes
    ----------
    name : str
        Name of the reading; the thresholds of a policy refer to it.
    requires : frozenset of str
        Entries of ``Backbone.provides`` that the signal needs; they are checked before
        the first step.
    interval : int, optional
        `ReliableCalculator` reads the signal at every ``interval``-th geometry, from
        the first one on. At the others there is no reading, and its threshold is
        skipped.
    extend : callable, optional
        A signal that needs further passes has a method ``extend(backbone)``: it returns
        a backbone that gives the results of these passes on demand.
    judges : frozenset of str, optional
        The quantities that the signal judges: "energy", "forces", "stress". By default
        energy and forces. A run is at least SUSPECT without a threshold for a signal
        that judges its forces and, when the cell moves, its stress (`uqcalc.uses`).
    judged : mapping or collection of str, optional
        Published values (keys of the results) that a `Policy` can limit, too. A
        mapping gives the quantities that each of them judges; otherwise these are those
        in ``judges``.
    """

    name: str
    requires: frozenset[str]

    def __call__(self, prediction: Prediction) -> TensorReading | None:
        """Return the reading; None if the signal does not run on this step."""
        ...


def extended(backbone: Backbone, signals: Sequence[Signal] | Signal) -> Backbone:
    """Return ``backbone`` with the further passes that the signals need, on demand."""
    for signal in signals if isinstance(signals, Sequence) else [signals]:
        if hasattr(signal, "extend"):
            backbone = signal.extend(backbone)
    return backbone


def check_readable(signal: Signal, backbone: Backbone) -> None:
    """Refuse a backbone that lacks quantities that a signal needs.

    The signal's own ``check`` runs, too; its errors pass through.

    Raises
    ------
    ValueError
        If quantities are missing; the message names them.
    """
    if missing := signal.requires - backbone.provides:
        msg = (
            f"signal {signal.name!r} needs {sorted(missing)}; {backbone.name} "
            f"provides {sorted(backbone.provides)}: "
            + getattr(signal, "remedy", "choose another signal or calculator")
        )
        raise ValueError(msg)
    if hasattr(signal, "check"):
        signal.check(backbone)


def to_host(readings: Sequence[TensorReading]) -> tuple[Reading, ...]:
    """Copy all readings of a step to the host in one transfer."""
    tensors = _tensors(readings)
    return _resolved(readings, fetch(tensors))


def to_host_asking(
    readings: Sequence[TensorReading], prediction: Prediction
) -> tuple[tuple[Reading, ...], tuple[str, ...]]:
    """Return the readings on the host and the names of non-finite quantities.

    Quantities of the prediction on the device are checked there. The results of these
    checks come to the host in the same transfer as the readings.
    """
    tensors, asked = _tensors(readings), prediction.on_device()
    answers = [torch.isfinite(tensor).all() for tensor in asked.values()]
    fetched = fetch([*tensors, *answers])
    broken = [*prediction.broken()]
    for name, answer in zip(asked, fetched[len(tensors) :], strict=True):
        if not answer and name not in broken:
            broken.append(name)
    return _resolved(readings, fetched[: len(tensors)]), tuple(broken)


def _tensors(readings: Sequence[TensorReading]) -> list[torch.Tensor]:
    return [
        value
        for reading in readings
        for value in (reading.risk, *reading.results.values())
        if isinstance(value, torch.Tensor)
    ]


def _resolved(
    readings: Sequence[TensorReading], fetched: Sequence[np.ndarray]
) -> tuple[Reading, ...]:
    """Return the readings with their tensors replaced by the arrays in ``fetched``."""
    host = iter(fetched)

    def resolve(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        array = next(host)
        if value.dtype is torch.bool:
            array = array.astype(bool)
        return array.item() if array.ndim == 0 else array

    return tuple(
        reading.on_host(
            float(resolve(reading.risk)),
            {key: resolve(value) for key, value in reading.results.items()},
        )
        for reading in readings
    )


def fetch(tensors: Sequence[torch.Tensor]) -> list[np.ndarray]:
    """Copy tensors of one device to the host, as float64, in one transfer."""
    if not tensors:
        return []
    # torch.cat would promote integers to float32 and lose digits
    exact = [t if t.is_floating_point() else t.double() for t in tensors]
    packed = torch.cat([t.detach().reshape(-1) for t in exact]).double().cpu().numpy()
    pieces = np.split(packed, np.cumsum([t.numel() for t in tensors])[:-1])
    return [
        piece.reshape(tuple(tensor.shape))
        for piece, tensor in zip(pieces, tensors, strict=True)
    ]

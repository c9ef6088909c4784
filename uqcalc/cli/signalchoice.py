"""Make the calculator of a command: with probes, Force Delta, a spread, or none."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple


if TYPE_CHECKING:
    from ase.calculators.calculator import BaseCalculator

    from uqcalc.calculator import ReliableCalculator
    from uqcalc.probe.probe import Probe
    from uqcalc.signals.base import Signal


class ForceDeltaChoice(NamedTuple):
    """Head and limits of Force Delta; None without."""

    head: Path | None
    limits: tuple[float, float] | None


class SpreadChoice(NamedTuple):
    """File, limits and members of a functional spread."""

    perturbation: Path
    limits: tuple[float, float] | None
    members: int


def reliable(
    model: BaseCalculator,
    probes: Sequence[Probe],
    force_delta: ForceDeltaChoice | None = None,
    spread: SpreadChoice | None = None,
    *,
    guaranteed: bool = False,
) -> ReliableCalculator:
    """Return a calculator with the probes and the signals that are chosen.

    Without any, it reads the signals that need no labels, and every frame is at least
    SUSPECT. The same holds for signals without limits and without a probe.

    Parameters
    ----------
    model : ase calculator
    probes : sequence of Probe
        That of the forces first (`uqcalc.defaults.open_probes`).
    force_delta : ForceDeltaChoice, optional
    spread : SpreadChoice, optional
    guaranteed : bool
        Whether the guarantee of the first probe replaces its cutoffs.
    """
    import uqcalc
    from uqcalc.defaults import probe_policy, probe_signals
    from uqcalc.policy import TRUST_NOTHING

    chosen: list[tuple[Signal, tuple[float, float] | None]] = []
    if force_delta is not None:
        chosen.append((uqcalc.ForceDelta(force_delta.head), force_delta.limits))
    if spread is not None:
        signal = uqcalc.FunctionalSpread(spread.perturbation, spread.members)
        chosen.append((signal, spread.limits))
    if not chosen and not probes:
        return uqcalc.ReliableCalculator(model)
    signals = [signal for signal, _ in chosen]
    beside = [uqcalc.Threshold(s.name, *limits) for s, limits in chosen if limits]
    if not beside and not probes:
        beside = [uqcalc.Threshold(signals[0].name, *TRUST_NOTHING)]
    if not probes:
        return uqcalc.ReliableCalculator(model, None, signals, uqcalc.Policy(beside))
    lead = probes[0].card.guarantee_policy() if guaranteed else None
    policy = probe_policy(probe_signals(probes), lead, beside)
    return uqcalc.ReliableCalculator(model, probes, signals, policy)

"""Make the calculator of a command: with a probe, Force Delta, or both."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple


if TYPE_CHECKING:
    from ase.calculators.calculator import BaseCalculator

    from uqcalc.calculator import ReliableCalculator
    from uqcalc.probe.probe import Probe


class ForceDeltaChoice(NamedTuple):
    """Head and limits of Force Delta; None without."""

    head: Path | None
    limits: tuple[float, float] | None


def reliable(
    model: BaseCalculator,
    probes: Sequence[Probe],
    force_delta: ForceDeltaChoice | None = None,
    *,
    guaranteed: bool = False,
) -> ReliableCalculator:
    """Return a calculator with the probes, Force Delta, or both.

    Without any, it reads the signals that need no labels, and every frame is at least
    SUSPECT. The same holds for Force Delta without limits and without a probe.

    Parameters
    ----------
    model : ase calculator
    probes : sequence of Probe
        That of the forces first (`uqcalc.defaults.open_probes`).
    force_delta : ForceDeltaChoice, optional
    guaranteed : bool
        Whether the guarantee of the first probe replaces its cutoffs.
    """
    import uqcalc
    from uqcalc.defaults import probe_policy, probe_signals
    from uqcalc.policy import TRUST_NOTHING

    if force_delta is None and not probes:
        return uqcalc.ReliableCalculator(model)
    signals = [] if force_delta is None else [uqcalc.ForceDelta(force_delta.head)]
    limits = None if force_delta is None else force_delta.limits
    if limits is None and not probes:
        limits = TRUST_NOTHING
    beside = [] if limits is None else [uqcalc.Threshold("force_delta", *limits)]
    if not probes:
        return uqcalc.ReliableCalculator(model, None, signals, uqcalc.Policy(beside))
    lead = probes[0].card.guarantee_policy() if guaranteed else None
    policy = probe_policy(probe_signals(probes), lead, beside)
    return uqcalc.ReliableCalculator(model, probes, signals, policy)

"""Make the calculator of a command: with a probe, Force Delta, or both."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from ase.calculators.calculator import BaseCalculator

    from uqcalc.calculator import ReliableCalculator
    from uqcalc.policy import Threshold
    from uqcalc.probe.probe import Probe


def with_force_delta(
    model: BaseCalculator,
    probe: Probe | None,
    head: Path | None,
    limits: tuple[float, float] | None,
    *,
    guaranteed: bool = False,
) -> ReliableCalculator:
    """Return a calculator with Force Delta and, if given, the probe.

    Without limits and probe, no threshold is known: every frame is SUSPECT.
    """
    import uqcalc
    from uqcalc.policy import TRUST_NOTHING

    thresholds: list[Threshold] = []
    if probe is not None:
        card = probe.card
        policy = card.guarantee_policy() if guaranteed else card.policy()
        thresholds += policy.thresholds
    if limits is not None:
        thresholds.append(uqcalc.Threshold("force_delta", *limits))
    if not thresholds:
        thresholds.append(uqcalc.Threshold("force_delta", *TRUST_NOTHING))
    return uqcalc.ReliableCalculator(
        model, probe, [uqcalc.ForceDelta(head)], uqcalc.Policy(thresholds)
    )

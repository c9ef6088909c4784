"""Make the calculator of a command: with probes, Force Delta, a spread, or none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import typer


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


PROBE = "probe"
# Names of signals that are made without a file, and their classes.
_FREE = {
    "max_force": "MaxForce",
    "force_spread": "ForceSpread",
    "energy_spread": "EnergySpread",
    "stress_spread": "StressSpread",
    "orb_confidence": "OrbConfidence",
}
# Signals that options add.
_GIVEN = (PROBE, "force_delta", "functional_spread")
CHOICES = (*_GIVEN, *_FREE)


def checked_names(text: str) -> list[str]:
    """Return the names of signals in a list with commas, each once.

    Raises
    ------
    ValueError
        If one is unknown.
    """
    names = list(dict.fromkeys(name.strip() for name in text.split(",")))
    if unknown := [name for name in names if name not in CHOICES]:
        msg = (
            f"signals must be among {', '.join(CHOICES)}, got {unknown}; sanity and "
            "flags always run"
        )
        raise ValueError(msg)
    return names


def check_given(signals: str | None, options: Mapping[str, object]) -> None:
    """Refuse options of a signal that ``--signals`` leaves out.

    Parameters
    ----------
    signals : str or None
        Names with commas; None for no choice.
    options : mapping
        Name of a signal -> what its options gave, false for nothing.

    Raises
    ------
    typer.BadParameter
        If a signal has options and is left out, or needs a file that is not given.
    """
    if signals is None:
        return
    names = signals.split(",")
    for name, given in options.items():
        if given and name not in names:
            msg = (
                f"--signals must contain {name}, whose options are given, got {signals}"
            )
            raise typer.BadParameter(msg)
    if "functional_spread" in names and not options["functional_spread"]:
        msg = "functional_spread must come with --perturbation FILE"
        raise typer.BadParameter(msg)


def reliable(
    model: BaseCalculator,
    probes: Sequence[Probe],
    force_delta: ForceDeltaChoice | None = None,
    spread: SpreadChoice | None = None,
    names: Sequence[str] | None = None,
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
    names : sequence of str, optional
        The signals to evaluate (`CHOICES`); by default those that are given.
    guaranteed : bool
        Whether the guarantee of the first probe replaces its cutoffs.
    """
    import uqcalc
    from uqcalc.defaults import probe_policy, probe_signals
    from uqcalc.policy import TRUST_NOTHING

    chosen: list[tuple[Signal, tuple[float, float] | None]] = []
    if force_delta is None and "force_delta" in (names or ()):
        force_delta = ForceDeltaChoice(None, None)
    if force_delta is not None:
        chosen.append((uqcalc.ForceDelta(force_delta.head), force_delta.limits))
    if spread is not None:
        signal = uqcalc.FunctionalSpread(spread.perturbation, spread.members)
        chosen.append((signal, spread.limits))
    chosen += [(getattr(uqcalc, _FREE[n])(), None) for n in names or () if n in _FREE]
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

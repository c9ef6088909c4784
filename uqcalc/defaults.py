"""Default choices of the probe, the signals and the policy."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from functools import lru_cache
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, TypeAlias

from uqcalc.backbones.base import Backbone
from uqcalc.backbones.fingerprint import same_model
from uqcalc.errors import ModelError
from uqcalc.labels.shipped import SHIPPED
from uqcalc.models.named import PROBE_FILES, SHIPPED_PROBES
from uqcalc.policy import TRUST_NOTHING, Policy, Threshold
from uqcalc.probe.card import Card
from uqcalc.probe.probe import Probe
from uqcalc.signals.base import Signal, check_readable
from uqcalc.signals.flags import Flags
from uqcalc.signals.force_delta import ForceDelta
from uqcalc.signals.label_free import ForceSpread, MaxForce
from uqcalc.signals.probe import ProbeSignal
from uqcalc.signals.region import Chosen
from uqcalc.signals.sanity import Sanity
from uqcalc.targets import TARGETS


def shipped_probe(name: str) -> Probe:
    """Return a probe that ships with the package.

    Parameters
    ----------
    name : str
        Name of a potential, for the probe of its forces, or of one probe, such as
        "chgnet.stress".

    Raises
    ------
    ModelError
        If no probe has this name.
    """
    if name not in PROBE_FILES:
        msg = (
            f"probe must be given for the model {name!r}, got none (only "
            f"{', '.join(SHIPPED_PROBES)} come with one); fit one: "
            f"uqcalc fit labelled.xyz --model {name} -o my.probe, or without labels of "
            f"your own: {_without_labels(name)}"
        )
        raise ModelError(msg)
    return _from_package(PROBE_FILES[name])


def shipped_probes(model: str) -> list[Probe]:
    """Return all probes that ship for a potential, that of the forces first.

    Raises
    ------
    ModelError
        If none ships for it.
    """
    first = shipped_probe(model)
    return [first, *map(_from_package, SHIPPED_PROBES[model][1:])]


def _without_labels(model: str) -> str:
    """Return the command that fits a probe with shipped labels, and its conditions."""
    name, labels = next(iter(SHIPPED.items()))
    return (
        f"uqcalc fit --labels {name} --model {model} -o my.probe (for crystals and a "
        f"potential that follows {labels.method})"
    )


def _from_package(file: str) -> Probe:
    with as_file(files("uqcalc") / "data" / file) as path:
        return Probe.load(path)


def find_probes(fingerprint: str) -> list[Probe]:
    """Return the probes that ship for the model of this fingerprint, or none."""
    for name, known in _fingerprints().items():
        if same_model(known, fingerprint):
            return shipped_probes(name)
    return []


@lru_cache(maxsize=1)
def _fingerprints() -> dict[str, str]:
    """Return the fingerprint of each model with probes; the cards are read once."""
    cards = {}
    for name, (first, *_) in SHIPPED_PROBES.items():
        with as_file(files("uqcalc") / "data" / first) as path:
            cards[name] = Card.of(path).fingerprint
    return cards


AUTO = "auto"


# One probe, or several of different targets.
Probes: TypeAlias = (
    str | os.PathLike[str] | Probe | Sequence[str | os.PathLike[str] | Probe]
)


def choose_signals(
    backbone: Backbone,
    probe: Probes | None,
    signals: Sequence[Signal],
    importance: str,
    *,
    sanity: bool = True,
    flags: bool | None = None,
    atoms: Chosen | None = None,
) -> tuple[Signal, ...]:
    """Return the signals; those of probes are first, `Sanity` and `Flags` are last.

    The probe's verdict is about ``atoms``, by default about all of them.

    Raises
    ------
    ValueError, TypeError, ProbeError
        As `ReliableCalculator`.
    """
    chosen = list(signals) if isinstance(signals, Sequence) else [signals]
    for signal in chosen:
        if isinstance(signal, type) or not isinstance(signal, Signal):
            msg = (
                f"signals must be signal objects, got {signal!r}; write for example "
                "signals=[MaxForce()]"
            )
            raise TypeError(msg)
    if probe == AUTO:
        probe, chosen = _automatic(backbone, chosen)
    always = importance == "always"
    chosen = [
        *_probe_signals(backbone, probe, importance=always, atoms=atoms),
        *chosen,
    ]
    if not chosen:
        msg = (
            "ReliableCalculator must have a probe or signals, got neither; pass "
            'probe="my.probe" (fit one with uqcalc.fit), or signals from '
            "uqcalc.signals such as [MaxForce()] or, for a committee, "
            "[ForceSpread()] together with a policy; uqcalc.default_calculator() "
            "brings its own"
        )
        raise ValueError(msg)
    if sanity and not any(isinstance(signal, Sanity) for signal in chosen):
        chosen.append(Sanity.of(backbone, forces=_has_force_signal(chosen)))
    wanted = sanity if flags is None else flags
    if wanted and not any(isinstance(signal, Flags) for signal in chosen):
        cards = [probe.card for probe in probes_of(chosen)]
        chosen.append(Flags.of(backbone, cards))
    names = [signal.name for signal in chosen]
    if len(set(names)) != len(names):
        msg = f"signals must have distinct names, got {names}"
        raise ValueError(msg)
    for signal in chosen:
        check_readable(signal, backbone)
    return tuple(chosen)


def _probe_signals(
    backbone: Backbone,
    probe: Probes | None,
    *,
    importance: bool,
    atoms: Chosen | None,
) -> list[Signal]:
    """Return a signal for each probe; that of the forces, or else the first, leads.

    Only the first is about the chosen ``atoms``.
    """
    if probe is None and atoms is not None:
        msg = (
            "atoms must be given together with a probe, got a calculator without one; "
            'pass probe="my.probe", or write signals=[ProbeSignal(probe, atoms=...)]'
        )
        raise ValueError(msg)
    if probe is None:
        return []
    given = [probe] if isinstance(probe, str | os.PathLike | Probe) else list(probe)
    return probe_signals(
        open_probes(given, backbone), importance=importance, atoms=atoms
    )


def probe_signals(
    probes: Sequence[Probe], *, importance: bool = True, atoms: Chosen | None = None
) -> list[Signal]:
    """Return a signal for each probe, named after its target but for the first."""
    return [
        ProbeSignal(
            probe,
            importance=importance,
            further=place > 0,
            atoms=None if place else atoms,
        )
        for place, probe in enumerate(probes)
    ]


def open_probes(
    given: Sequence[str | os.PathLike[str] | Probe], backbone: Backbone | None = None
) -> list[Probe]:
    """Return the probes that the names stand for, that of the forces first.

    Parameters
    ----------
    given : sequence of Probe, path or str
        A probe, the file of one, or a name: "chgnet" for all probes of CHGNet that come
        with the package, "chgnet.stress" for one of them.
    backbone : Backbone, optional
        For "auto": all probes of the package for this potential.

    Raises
    ------
    ProbeError, ModelError
        If a file is not a probe, or the package has none for ``backbone``.
    """
    opened = [probe for one in given for probe in _loaded(one, backbone)]
    return sorted(opened, key=lambda one: one.card.target != "forces")  # stable


def _loaded(
    probe: str | os.PathLike[str] | Probe, backbone: Backbone | None
) -> list[Probe]:
    """Return the probe itself or that of a file, or those that ship for a model."""
    if isinstance(probe, Probe):
        return [probe]
    if probe in PROBE_FILES and not Path(probe).exists():
        name = str(probe)
        return shipped_probes(name) if name in SHIPPED_PROBES else [shipped_probe(name)]
    if probe != AUTO or backbone is None:
        return [Probe.load(probe)]
    found = find_probes(backbone.fingerprint)
    if not found:
        msg = (
            f"{AUTO!r} among several probes must be a probe that ships for the model, "
            f"got none for {backbone.fingerprint}; pass the files of your probes only. "
            f"Without labels of your own: {_without_labels('NAME')}"
        )
        raise ModelError(msg)
    return found


def _has_force_signal(signals: Sequence[Signal]) -> bool:
    """Return whether the signals judge forces, which may vanish by symmetry."""
    probes = probes_of(signals)
    return not probes or any(
        TARGETS[probe.card.target].of == "forces" for probe in probes
    )


def _automatic(
    backbone: Backbone, chosen: list[Signal]
) -> tuple[list[Probe] | None, list[Signal]]:
    """Return the shipped probes (None if the user gives one) and the signals."""
    if probes_of(chosen):
        return None, chosen
    probes = find_probes(backbone.fingerprint)
    if not probes and not chosen:
        chosen = label_free(backbone)
        _say_once(
            f"no probe ships for {backbone.fingerprint}: the signals "
            f"{', '.join(signal.name for signal in chosen)} are used, for which no "
            "limits are known, so every geometry is at least SUSPECT. Fit a probe with "
            f"uqcalc.fit, or without labels of your own: {_without_labels('NAME')}; "
            "or pass signals and a policy"
        )
    elif probes:
        _say_once(_taken([probe.card for probe in probes]))
    return probes or None, chosen


def choose_policy(
    signals: tuple[Signal, ...], policy: Policy | None, *, auto: bool
) -> Policy:
    """Return the given policy, that of the probes, or one that never gives RELIABLE.

    Raises
    ------
    ValueError, TypeError
        If no policy is found, or it has a threshold for a signal that does not run.
    """
    names = [s.name for s in signals if not isinstance(s, Sanity | Flags)]
    if policy is None and not probes_of(signals) and auto:
        # no limits are known: finite risks are SUSPECT, NaN is UNRELIABLE
        return Policy(Threshold(name, *TRUST_NOTHING) for name in names)
    if policy is None:
        probes = probes_of(signals)
        if not probes:
            msg = (
                f"policy must be given where there is no probe to bring one, got None "
                f"for signals {names}; pass policy=Policy([Threshold("
                f"{names[0]!r}, suspect=..., unreliable=...)])"
            )
            raise ValueError(msg)
        return probe_policy(signals)
    checked: object = policy
    if not isinstance(checked, Policy):
        msg = (
            f"policy must be a Policy, got {type(policy).__name__}; write "
            "Policy([Threshold(...)])"
        )
        raise TypeError(msg)
    names = [signal.name for signal in signals]
    judged = [key for signal in signals for key in getattr(signal, "judged", ())]
    if unread := {t.signal for t in policy.all_thresholds} - {*names, *judged}:
        msg = (
            f"policy must judge signals that run, got thresholds for {sorted(unread)} "
            f"and signals {[*names, *judged]}; add the signal or drop the threshold"
        )
        raise ValueError(msg)
    for threshold in policy.all_thresholds:
        if threshold.guarantee:
            _check_guarantee(threshold, signals)
    return policy


def probe_policy(
    signals: Sequence[Signal],
    lead: Policy | None = None,
    beside: Sequence[Threshold] = (),
) -> Policy:
    """Return the policy of the probes: for each use those that matter.

    The first probe (that of the forces, if there is one) counts for every geometry, a
    probe of the stress when the cell moves, and those of energies where the energy is
    the result.

    Parameters
    ----------
    signals : sequence of Signal
        At least one of a probe.
    lead : Policy, optional
        Replaces the policy on the card of the first probe.
    beside : sequence of Threshold
        Those of other signals, which count with the first probe.
    """
    first, *others = [s for s in signals if isinstance(s, ProbeSignal)]
    leading = (lead or first.probe.card.policy(first.name)).thresholds
    by_quantity: dict[str, list[Threshold]] = {}
    for signal in others:
        for quantity in signal.judges:
            more = signal.probe.card.policy(signal.name).thresholds
            by_quantity.setdefault(quantity, []).extend(more)
    energy = by_quantity.get("energy", [])
    if energy and "energy" in first.judges:
        energy = [*leading, *energy]
    return Policy([*leading, *beside], by_quantity.get("stress", ()), energy)


def _check_guarantee(threshold: Threshold, signals: Sequence[Signal]) -> None:
    """Raise an error for the guarantee of another probe, or one for chosen atoms."""
    if any(isinstance(s, ProbeSignal) and s.region is not None for s in signals):
        msg = (
            "policy for chosen atoms must not be that of a guarantee, which is about "
            f"whole structures, got {threshold.guarantee}; leave out policy or atoms"
        )
        raise ValueError(msg)
    own = [
        signal.probe.card.guarantee_policy(signal.name).thresholds[0]
        for signal in signals
        if isinstance(signal, ProbeSignal) and signal.name == threshold.signal
    ]
    known = [(t.signal, t.suspect, t.guarantee) for t in own]
    if (threshold.signal, threshold.suspect, threshold.guarantee) not in known:
        msg = (
            "policy of a guarantee must be that of the probe in use, got "
            f"{threshold.guarantee} at least {1 - threshold.suspect:.4g}; make it with "
            "Policy.from_guarantee(probe)"
        )
        raise ValueError(msg)


def label_free(backbone: Backbone) -> list[Signal]:
    """Return the signals that need neither labels nor an extra computation."""
    free = backbone.provides - backbone.on_demand
    candidates: list[Signal] = [MaxForce(), ForceSpread(), ForceDelta()]
    return [signal for signal in candidates if signal.requires <= free]


def probes_of(signals: Sequence[Signal]) -> list[Probe]:
    """Return the probes among the signals."""
    return [signal.probe for signal in signals if isinstance(signal, ProbeSignal)]


def configuration(
    backbone: Backbone, signals: Sequence[Signal], policy: Policy
) -> dict[str, Any]:
    """Return a JSON-compatible description of backbone, signals and policy."""
    return {
        "backbone": backbone.fingerprint,
        "signals": [signal.name for signal in signals],
        "policy": policy.to_dict(),
        **{
            f"{signal.name}_atoms": list(signal.region.atoms)
            for signal in signals
            if isinstance(signal, ProbeSignal) and signal.region is not None
        },
    }


def description(
    backbone: Backbone, signals: Sequence[Signal], policy: Policy
) -> dict[str, Any]:
    """Return `configuration` and the card of the first probe (or None), for logs.

    The cards of further probes are under "further_probes".
    """
    cards = [probe.card.to_dict() for probe in probes_of(signals)]
    found = configuration(backbone, signals, policy)
    found |= {"probe": cards[0] if cards else None}
    return found | ({"further_probes": cards[1:]} if cards[1:] else {})


def _taken(cards: Sequence[Card]) -> str:
    smallest, largest = cards[0].sizes
    noun = "probe that ships" if len(cards) == 1 else f"{len(cards)} probes that ship"
    return (
        f"took the {noun} for {cards[0].fingerprint}: "
        f"{', '.join(card.question for card in cards)}, "
        f"fitted on structures of {len(cards[0].elements)} elements and {smallest} to "
        f"{largest} atoms"
    )


@lru_cache(maxsize=64)
def _say_once(text: str) -> None:
    """Log a warning only once, not for every image of a NEB band."""
    logging.getLogger("uqcalc").warning(text)

"""What a result is used for, and the quantities that its verdict must then cover."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias, get_args

from uqcalc.policy import RUN, Policy, extended
from uqcalc.records import Assessment, Reading


Use: TypeAlias = Literal["fixed_cell", "moving_cell", "energy"]
USES: tuple[Use, ...] = get_args(Use)
NEEDED: Mapping[Use, tuple[str, ...]] = {
    "fixed_cell": ("forces",),
    "moving_cell": ("forces", "stress"),
    "energy": ("energy",),
}
_SITUATIONS: Mapping[Use, str] = {
    "fixed_cell": "forces move the atoms",
    "moving_cell": "the cell moves",
    "energy": "the energy is the result",
}
# Part of every reason of `uncovered`.
NOT_JUDGED = "but no signal of the policy judges the"
# Quantities of a signal that does not say what it judges.
_UNSTATED = frozenset({"energy", "forces"})


def checked_use(use: str | None) -> Use | None:
    """Return ``use`` if it is known.

    Raises
    ------
    ValueError
        If it is not None and not one of `USES`.
    """
    for known in USES:
        if use == known:
            return known
    if use is not None:
        msg = f"use must be one of {', '.join(USES)}, got {use!r}; choose one"
        raise ValueError(msg)
    return None


def uncovered(signals: Sequence[Any], policy: Policy, use: Use) -> list[str]:
    """Return a reason if the policy does not judge every quantity of this use.

    Parameters
    ----------
    signals : sequence of Signal
        A signal names the quantities that it judges in ``judges``; without this
        attribute it counts for energy and forces. ``judged`` are published values that
        a policy can limit, too; as a mapping it says which quantities each judges.
    policy : Policy
    use : {"fixed_cell", "moving_cell", "energy"}

    Returns
    -------
    list of str
        Empty, or one reason that names the missing quantities.
    """
    names = {*policy.signals_for(use)}
    known = {quantity for signal in signals for quantity in _judged(signal, names)}
    missing = [quantity for quantity in NEEDED[use] if quantity not in known]
    if not missing:
        return []
    listed = " and ".join(missing)
    return [
        f"{_SITUATIONS[use]}, {NOT_JUDGED} {listed}: add a probe whose target is an "
        f"error of the {listed}"
    ]


def _judged(signal: Any, names: set[str]) -> set[str]:
    """Return the quantities that a signal judges with thresholds for ``names``."""
    own = frozenset(getattr(signal, "judges", _UNSTATED))
    judged = getattr(signal, "judged", ())
    by_value = judged if isinstance(judged, Mapping) else dict.fromkeys(judged, own)
    known = {**by_value, signal.name: own}
    return {quantity for name in names & {*known} for quantity in known[name]}


def without_forces(
    assessment: Assessment, use: Use | None, signals: Sequence[Any]
) -> Assessment:
    """Return the assessment of a pass that computed no forces.

    The level is at least SUSPECT, unless the verdict is on the energy: nothing shows
    whether the forces are finite, or vanish by symmetry.
    """
    first = getattr(signals[0], "judges", _UNSTATED)
    of = first if use is None else frozenset(NEEDED[use])
    if of == frozenset({"energy"}):
        return assessment
    doubts = ("no forces were computed, so no forces were judged",)
    return extended(assessment, Reading(RUN, 0.0, doubts=doubts, always=True))


def judged_for(
    assessment: Assessment, use: Use | None, policy: Policy, signals: Sequence[Any]
) -> Assessment:
    """Return the assessment for a use of the results.

    The level is at least SUSPECT if no signal of the policy judges a quantity that this
    use needs. None is for a use that is not stated: nothing changes.
    """
    if use is None:
        return assessment
    found = policy.for_use(assessment, use)
    if missing := uncovered(signals, policy, use):
        doubts = tuple(missing)
        found = extended(found, Reading(RUN, 0.0, doubts=doubts, always=True))
    return found

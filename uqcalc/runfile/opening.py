"""Open the structure, the potential and the probe that a run file names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

from ase import Atoms

from uqcalc.annotating.copies import unlabelled_copy
from uqcalc.calculator import ReliableCalculator
from uqcalc.defaults import (
    open_probes,
    probe_policy,
    probe_signals,
    shipped_probes,
)
from uqcalc.errors import LabelError, ProbeError, RecordError, RunFileError
from uqcalc.files.structures import UNREADABLE, frames_of
from uqcalc.limits.halting import HaltingGuarantee
from uqcalc.models.named import SHIPPED_PROBES, open_model
from uqcalc.policy import Policy, Threshold
from uqcalc.probe.probe import Probe
from uqcalc.runfile.file import RunFile
from uqcalc.signals.base import Signal
from uqcalc.signals.force_delta import ForceDelta
from uqcalc.signals.functional import FunctionalSpread


def open_structure(file: RunFile) -> Atoms:
    """Read the structure, repeated as the file says.

    Raises
    ------
    RunFileError
        If there is no such frame, or a direction to repeat has no cell vector.
    """
    try:
        path = file.at(file.structure)
        atoms = next(frames_of(path, file.frame, species=file.species))
    except RecordError as error:
        raise RunFileError(str(file.path), [f"structure: {error}"]) from error
    except UNREADABLE as error:
        problem = (
            f"structure: must hold frame {file.frame} in a format that ASE reads, got "
            f"{file.structure!r} ({type(error).__name__}: {error})"
        )
        raise RunFileError(str(file.path), [problem]) from error
    vectors = zip(file.repeat, atoms.cell, strict=True)
    if any(count > 1 and not vector.any() for count, vector in vectors):
        problem = (
            "repeat: must be 1 along each direction without a cell vector, got "
            f"{file.repeat} for the cell {atoms.cell.tolist()}"
        )
        raise RunFileError(str(file.path), [problem])
    return cast("Atoms", unlabelled_copy(atoms).repeat(file.repeat))


def open_calculator(file: RunFile) -> ReliableCalculator:
    """Open the potential with its probe and with the signals of the file.

    Without any, the defaults of `ReliableCalculator` hold: signals that need no
    labels are read, and every step is at least SUSPECT.

    Raises
    ------
    ModelError, ProbeError, BackboneError
        As `uqcalc.open_model` and `ReliableCalculator` do.
    """
    signals, beside = _signals(file)
    probes = _probes(file)
    if file.probe_atoms is not None:
        _check_region(file, probes)
    model = open_model(file.model_at(), device=file.device, dtype=file.dtype)
    policy = _policy(file, probes, beside)
    # without probe and signals, those that need no labels are chosen
    options: dict[str, Any] = {}
    if probes or signals:
        options = {"probe": probes or None, "signals": signals}
    try:
        return ReliableCalculator(
            model, **options, policy=policy, atoms=file.probe_atoms
        )
    except ValueError as error:
        if file.policy.halting_guarantee is None:
            raise
        problem = f"policy.halting_guarantee: {error}"
        raise RunFileError(str(file.path), [problem]) from error


def _signals(file: RunFile) -> tuple[list[Signal], list[Threshold]]:
    """Return the signals beside the probe, and their limits."""
    signals: list[Signal] = []
    beside: list[Threshold] = []
    if (delta := file.force_delta) is not None:
        head = None if delta.head is None else file.at(delta.head)
        signals.append(ForceDelta(head, interval=delta.interval))
        beside.append(Threshold(ForceDelta.name, *delta.limits))
    if (spread := file.functional_spread) is not None:
        path = file.at(spread.perturbation)
        signals.append(FunctionalSpread(path, spread.members, spread.interval))
        beside.append(Threshold(FunctionalSpread.name, *spread.limits))
    return signals, beside


def _policy(
    file: RunFile, probes: Sequence[Probe], beside: Sequence[Threshold]
) -> Policy | None:
    """Return the policy: of a guarantee of halts, of the first probe, or of signals.

    Limits of the file on other signals (``beside``) count with a guarantee, too: they
    can only halt earlier.
    """
    guarantee = halting_guarantee(file)
    if guarantee is not None:
        own = guarantee.policy()
        more = [limit for limit in beside if limit.signal not in own.signals]
        return Policy([*own.thresholds, *more], own.moving_cell)
    if probes:
        lead = _lead_policy(file, probes[0])
        return probe_policy(probe_signals(probes), lead, beside)
    return Policy(beside) if beside else None


def halting_guarantee(file: RunFile) -> HaltingGuarantee | None:
    """Read the guarantee of halts that the file names; None without one.

    Raises
    ------
    RunFileError
        If it is not such a file.
    """
    if (name := file.policy.halting_guarantee) is None:
        return None
    try:
        return HaltingGuarantee.load(file.at(name))
    except LabelError as error:
        problem = f"policy.halting_guarantee: {error}"
        raise RunFileError(str(file.path), [problem]) from error


def _check_region(file: RunFile, probes: Sequence[Probe]) -> None:
    """Refuse ``probe_atoms`` without a probe, with a guarantee, or with repetitions."""
    given = file.probe_atoms or []
    problems = []
    if not probes:
        problems.append("must be left out where there is no probe; name a probe")
    if file.policy.promise:
        problems.append(
            "must be left out with policy.promise: a guarantee is about whole "
            "structures"
        )
    if len(set(given)) < len(given):
        problems.append(f"must be distinct indices, got {given[:20]}")
    if problems:
        raise RunFileError(str(file.path), [f"probe_atoms: {p}" for p in problems])


def _probes(file: RunFile) -> list[Probe]:
    """Return the probes that the file names, or those that ship for the model.

    That of the forces is first, as in `ReliableCalculator`.
    """
    if file.probe is not None:
        return open_probes(file.probes)
    if file.model in SHIPPED_PROBES:
        return shipped_probes(file.model)
    given = file.policy
    if given.promise or given.suspect is not None or given.unreliable is not None:
        problem = (
            "policy: must leave out suspect, unreliable and promise, which are about "
            "P(reliable), where there is no probe; name a probe"
        )
        raise RunFileError(str(file.path), [problem])
    return []


def _lead_policy(file: RunFile, probe: Probe) -> Policy:
    """Return the first probe's policy, with the cutoffs of the file if it has any."""
    card, policy = probe.card, file.policy
    if policy.promise:
        return _guarantee_policy(file, probe)
    suspect = card.suspect if policy.suspect is None else policy.suspect
    unreliable = card.unreliable if policy.unreliable is None else policy.unreliable
    if unreliable > suspect:
        given = "suspect" if policy.unreliable is None else "unreliable"
        other = "unreliable" if policy.unreliable is None else "suspect"
        problem = (
            f"policy.{given}: suspect must be at least unreliable, got "
            f"suspect={suspect:g} and unreliable={unreliable:g}, where {other} is "
            "that of the probe; give both"
        )
        raise RunFileError(str(file.path), [problem])
    return replace(card, suspect=suspect, unreliable=unreliable).policy()


def _guarantee_policy(file: RunFile, probe: Probe) -> Policy:
    """Return the policy of the probe's guarantee, with the file's other cutoff."""
    card, given = probe.card, file.policy.unreliable
    if given is not None:
        card = replace(card, suspect=max(given, card.suspect), unreliable=given)
    try:
        return card.guarantee_policy()
    except ProbeError as error:
        raise RunFileError(str(file.path), [f"policy.promise: {error}"]) from error


def check_structure(file: RunFile, atoms: Atoms) -> None:
    """Refuse a structure that does not allow the task of the file.

    ``atoms`` have the velocities of their file, and the calculator of the run.

    Raises
    ------
    RunFileError
        If velocities to keep are missing, if an index of an atom is too large, or if
        the cell is to move but is not periodic, is constrained, or the model has no
        stress.
    """
    problems = []
    md, relax = file.md, file.relax
    if file.probe_atoms is not None and max(file.probe_atoms) >= len(atoms):
        problems.append(
            f"probe_atoms: must be below the number of atoms, which is {len(atoms)}, "
            f"got {max(file.probe_atoms)}"
        )
    if md is not None and md.velocities == "keep" and not atoms.has("momenta"):
        problems.append(
            "md.velocities: must be new for a structure without velocities, got keep"
        )
    if md is not None and md.ensemble == "npt":
        problems += _cell_problems("md.ensemble: npt", atoms)
        if atoms.constraints:
            kinds = [type(constraint).__name__ for constraint in atoms.constraints]
            problems.append(
                f"md.ensemble: npt must have an unconstrained structure, got {kinds}"
            )
    if relax is not None and relax.cell:
        problems += _cell_problems("relax.cell: true", atoms)
    if problems:
        raise RunFileError(str(file.path), problems)


def _cell_problems(what: str, atoms: Atoms) -> list[str]:
    problems = []
    if not atoms.pbc.all():
        problems.append(
            f"{what} must have a structure that is periodic in all three directions, "
            f"got {atoms.pbc.tolist()}"
        )
    if "stress" not in atoms.calc.implemented_properties:
        problems.append(f"{what} must have a model that gives stress, got one without")
    return problems

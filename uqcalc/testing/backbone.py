"""Check the contract of a backbone."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.calculator import BaseCalculator, equal

from uqcalc.backbones.base import Backbone, Prediction
from uqcalc.backbones.registry import tap
from uqcalc.testing.chargespin import check_told_apart
from uqcalc.testing.clauses import ContractError, Limits, to_array
from uqcalc.testing.derivatives import check_forces, check_stress
from uqcalc.testing.instruments import (
    counted_calls,
    predict,
    predict_all,
    wanted,
    ways_to_copy,
)


# (rtol, atol, force_atol in eV/Å, step in Å) that a model's own round-off allows.
_DEFAULTS = {torch.float64: (1e-7, 1e-9, 1e-5, 1e-3)}
_COARSE = (1e-4, 1e-5, 5e-3, 3e-3)

# What must be the same in a batch as alone.
BATCHED = (
    "energy",
    "forces",
    "features",
    "charges",
    "committee_forces",
    "committee_energies",
    "committee_stresses",
    "expected_errors",
    "energy_uncertainties",
    "direct_forces",
    "conservative_forces",
    "vectors",
)


def contract_frames() -> dict[str, Atoms]:
    """Return structures that a universal potential must evaluate, by name.

    They are not minima: a molecule without a cell, a crystal, a film that is periodic
    in two directions only, and a lone atom. Leave out structures outside the scope of a
    potential. If it does not support the elements, use other frames.
    """
    methanol = molecule("CH3OH")
    crystal = bulk("NaCl", "rocksalt", a=5.64)
    film = crystal.copy()
    film.center(vacuum=4.0, axis=2)
    film.pbc = (True, True, False)
    frames = {"molecule": methanol, "crystal": crystal, "film": film}
    for frame in frames.values():
        frame.rattle(0.05, seed=7)
    return frames | {"atom": Atoms("O", positions=[(0.1, 0.2, 0.3)])}


def check_backbone(
    make: Callable[[], Backbone | BaseCalculator],
    frames: Sequence[Atoms] | dict[str, Atoms],
    *,
    rtol: float | None = None,
    atol: float | None = None,
    force_atol: float | None = None,
    finite_difference_step: float | None = None,
    exact: bool = True,
) -> None:
    """Check everything that `uqcalc.ReliableCalculator` requires of a backbone.

    Parameters
    ----------
    make : callable
        Returns a fresh `Backbone`, or a fresh calculator for `uqcalc.tap`, of the
        same model at every call.
    frames : sequence or dict of Atoms
        Structures within the reach of the potential, such as `contract_frames`.
    rtol, atol : float, optional
        For what may differ by round-off: symmetry and batches; ``rtol`` is relative
        to the largest value. By default they depend on the precision of the features.
    force_atol : float, optional
        Largest ``|F + dE/dx|`` in eV/Å.
    finite_difference_step : float, optional
        Step of the central differences in Å.
    exact : bool
        Whether equal passes must be bitwise equal. Choose False where the bare
        calculator's are not, as on devices that sum in any order or for TorchScript,
        which changes while it runs: ``rtol`` and ``atol`` then apply.

    Raises
    ------
    ContractError
        At the first clause that does not hold.
    """
    named = frames if isinstance(frames, dict) else _named(frames)
    backbone, bare = tap(make()), tap(make()).calculator
    if not named:
        raise ContractError("frames", "must be at least one structure, got none")
    fingerprint = backbone.fingerprint
    given = (rtol, atol, force_atol, finite_difference_step)
    for name, atoms in named.items():
        defaults = _DEFAULTS.get(predict(backbone, atoms).features.dtype, _COARSE)
        relative, absolute, force, step = (
            d if g is None else g for d, g in zip(defaults, given, strict=True)
        )
        limits = Limits(relative, absolute, force, step, exact, name)
        _check_untouched(backbone, atoms, limits)
        _check_shapes(backbone, atoms, limits)
        _check_transparent(backbone, bare, atoms, limits)
        _check_own_geometry(backbone, atoms, limits)
        _check_symmetry(backbone, atoms, limits)
        _check_on_demand(backbone, atoms, limits)
        check_forces(backbone, atoms, limits)
        check_stress(backbone, atoms, limits)
    check_told_apart(backbone, next(iter(named.values())), limits)
    _check_batches(backbone, list(named.values()), limits)
    _check_threads(backbone, list(named.values()), limits)
    # of a used one: some calculators are no longer copyable after their first pass
    _check_identity(backbone, tap(make()), fingerprint, ways_to_copy(bare))


def _check_untouched(backbone: Backbone, atoms: Atoms, limits: Limits) -> None:
    handed, before = atoms.copy(), atoms.copy()
    backbone(handed, wanted(backbone, handed))
    backbone.untapped(handed, wanted(backbone, handed))
    alike = (
        handed == before
        and equal(handed.info, before.info)
        and equal(handed.arrays, before.arrays)
        and handed.calc is None
    )
    message = "positions, info, arrays and calc must be left as they were; copy first"
    limits.require("untouched", alike, message)


def _check_shapes(backbone: Backbone, atoms: Atoms, limits: Limits) -> None:
    got, count = predict(backbone, atoms), len(atoms)
    shape = (count, backbone.feature_dim)
    limits.require(
        "shapes",
        tuple(got.features.shape) == shape and got.features.is_floating_point(),
        f"features must be real numbers of shape {shape}, got {got.features.dtype} of "
        f"{tuple(got.features.shape)}",
    )
    kept = got.features.requires_grad or got.features.grad_fn is not None
    limits.require("detached", not kept, "features must be detached from the graph")
    offered: dict[str, tuple[Any, tuple[int, ...]]] = {
        "charges": (got.charges, (count,)),
        "committee_forces": (got.committee_forces, (count, 3)),
        "committee_energies": (got.committee_energies, ()),
        "expected_errors": (got.expected_errors, (count,)),
        "energy_uncertainties": (got.energy_uncertainties, (count,)),
        "forces": (got.forces, (count, 3)),
        "direct_forces": (got.direct_forces, (count, 3)),
        "conservative_forces": (got.conservative_forces, (count, 3)),
        "vectors": (got.vectors, (3,)),
    }
    for name, (value, rows) in offered.items():
        if name in backbone.on_demand:
            message = f"{name} is on demand: it must be None where it is not wanted"
            limits.require("on demand", value is None, message)
            continue
        promised = name in backbone.provides
        message = f"{name} must be given exactly where `provides` has it"
        limits.require("provides", (value is not None) == promised, message)
        if value is not None:
            its = tuple(np.shape(value))
            fits = its[len(its) - len(rows) :] == rows
            message = f"{name} must end in {rows}, got {its}"
            limits.require("shapes", fits, message)
    _check_geometry(got, atoms, limits)


def _check_geometry(got: Prediction, atoms: Atoms, limits: Limits) -> None:
    limits.bitwise("geometry", got.cell, atoms.cell.array, "cell")
    for name in ("numbers", "positions", "pbc"):
        limits.bitwise("geometry", getattr(got, name), getattr(atoms, name), name)


def _check_transparent(
    backbone: Backbone, bare: BaseCalculator, atoms: Atoms, limits: Limits
) -> None:
    """Check for equal results without further calls of any torch module."""
    moved = atoms.copy()
    moved.positions += 1e-3  # a geometry that is in no cache
    with counted_calls() as alone:
        bare.calculate(moved, wanted(backbone, moved), bare.check_state(moved))
    before = backbone.passes
    with counted_calls() as wrapped:
        ours = predict(backbone, moved).results
    passes, due = backbone.passes - before, backbone.passes_per_geometry
    message = f"must be {due} for each geometry, got {passes}"
    limits.require("passes", passes == due, message)
    more = dict(wrapped - alone)
    message = f"must call no torch module more often than the calculator, got {more}"
    limits.require("passes", not more, message)
    message = f"keys must be {sorted(bare.results)}, got {sorted(ours)}"
    limits.require("results", ours.keys() == bare.results.keys(), message)
    for key, value in bare.results.items():
        limits.same("results", ours[key], value, key)


def _check_on_demand(backbone: Backbone, atoms: Atoms, limits: Limits) -> None:
    """Request quantities on demand: one pass gives them, and nothing else changes."""
    if not backbone.on_demand:
        return
    plain = predict(backbone, atoms)
    before = backbone.passes
    full = predict_all(backbone, atoms)
    passes, due = backbone.passes - before, backbone.passes_per_geometry
    message = f"must be {due} with all quantities wanted, got {passes}"
    limits.require("passes", passes == due, message)
    for name in backbone.on_demand:
        needless = name.endswith(("stress", "stresses")) and not atoms.pbc.all()
        message = f"{name} must be given where it is wanted"
        there = getattr(full, name) is not None
        limits.require("on demand", needless or there, message)
    for key, value in plain.results.items():
        limits.close("on demand", full.results[key], value, key)
    limits.close("on demand", full.features, plain.features, "features")
    kept = full.features.requires_grad
    limits.require(
        "detached", not kept, "features must be detached from the graph on demand, too"
    )


def _check_own_geometry(backbone: Backbone, atoms: Atoms, limits: Limits) -> None:
    other = atoms.copy()
    other.rattle(0.05, seed=11)
    first = predict(backbone, atoms)
    kept = first.features.clone()
    second = predict(backbone, other)
    again = predict(backbone, atoms)
    what = "features of a geometry, before and after another geometry,"
    limits.same("own geometry", again.features, kept, what)
    limits.same("own geometry", first.features, kept, "features that were returned")
    if len(atoms) > 1:
        moved = not torch.equal(second.features, kept)
        message = (
            "features must change with the positions, got the old features after a "
            "displacement"
        )
        limits.require("own geometry", moved, message)


def _check_symmetry(backbone: Backbone, atoms: Atoms, limits: Limits) -> None:
    base = predict(backbone, atoms)
    order = np.random.default_rng(5).permutation(len(atoms))
    permuted = predict(backbone, atoms[order])
    features = base.features[torch.as_tensor(order)]
    limits.close("permutation", permuted.features, features, "features")
    limits.close("permutation", permuted.forces, base.forces[order], "forces")
    shifted = atoms.copy()
    shifted.translate((0.3, -1.2, 2.1))
    features = predict(backbone, shifted).features
    limits.close("translation", features, base.features, "features")
    if backbone.invariant_features:
        turned = atoms.copy()
        turned.rotate(61.0, (1, 2, 3), rotate_cell=True)
        features = predict(backbone, turned).features
        limits.close("rotation", features, base.features, "features")
    vectors = predict_all(backbone, atoms).vectors
    if vectors is not None:
        turned, unit = atoms.copy(), Atoms(cell=np.eye(3))
        turned.rotate(61.0, (1, 2, 3), rotate_cell=True)
        unit.rotate(61.0, (1, 2, 3), rotate_cell=True)
        got = predict_all(backbone, turned).vectors
        rotated = to_array(vectors) @ unit.cell.array
        limits.close("rotation", got, rotated, "vectors, turned with the structure,")


def _check_batches(backbone: Backbone, frames: Sequence[Atoms], limits: Limits) -> None:
    everything = sorted({"energy", "forces"} | backbone.on_demand)
    together = backbone.predict_many([atoms.copy() for atoms in frames], everything)
    message = f"must return {len(frames)} predictions, got {len(together)}"
    limits.require("batches", len(together) == len(frames), message)
    for batched, atoms in zip(together, frames, strict=True):
        alone = predict_all(backbone, atoms)
        _check_geometry(batched, atoms, limits)
        for name in BATCHED:
            one, many = getattr(alone, name), getattr(batched, name)
            message = f"{name} must be given as in a single evaluation"
            limits.require("batches", (one is None) == (many is None), message)
            if one is not None:
                limits.close("batches", many, one, name)
        kept = batched.features.requires_grad
        limits.require(
            "detached",
            not kept,
            "features must be detached from the graph in a batch, too",
        )


def _check_threads(backbone: Backbone, frames: Sequence[Atoms], limits: Limits) -> None:
    """Evaluate alone and in batches in several threads: each gets its own answer."""
    expected = [predict(backbone, atoms) for atoms in frames]
    turns = [*range(len(frames))] * 2

    def evaluate(turn: int) -> Prediction:
        own = frames[turn].copy()
        return (
            backbone.predict_many([own, own.copy()])[1]
            if turn % 2
            else predict(backbone, own)
        )

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # so that threads interrupt each other
    try:
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(evaluate, turns))
    finally:
        sys.setswitchinterval(interval)
    for turn, got in zip(turns, answers, strict=True):
        for name in ("energy", "forces", "features"):
            theirs = getattr(expected[turn], name)
            limits.close("threads", getattr(got, name), theirs, f"{name} in a thread")


def _check_identity(
    used: Backbone, fresh: Backbone, fingerprint: str, copyable: set[str]
) -> None:
    if len({fingerprint, used.fingerprint, fresh.fingerprint}) != 1:
        message = "must be the same for two makes and after use; hash the weights only"
        raise ContractError("fingerprint", message)
    if lost := copyable - ways_to_copy(used.calculator):
        message = f"calculator must remain copyable, lost {sorted(lost)}"
        raise ContractError("copies", message)


def _named(frames: Sequence[Atoms]) -> dict[str, Atoms]:
    return {f"{i}: {atoms.symbols}": atoms for i, atoms in enumerate(frames)}

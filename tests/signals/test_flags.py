"""Flags: their findings, and ordinary structures without findings."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.collections import g2
from ase.md.verlet import VelocityVerlet
from ase.neighborlist import neighbor_list

from tests.builders import rattled
from tests.probe.toys import ToyBackbone
from uqcalc import (
    Flags,
    Level,
    MaxForce,
    Monitor,
    Policy,
    ReliableCalculator,
    Threshold,
)
from uqcalc.backbones.prediction import Prediction, geometry
from uqcalc.geometry.bonds import BONDED, SINGLE, BondFinder
from uqcalc.geometry.environments import Environments
from uqcalc.labels.regimes import Conditions, geometry_of, limits_of_labels, regimes_of
from uqcalc.testing import check_signal
from uqcalc.watching.bondgraph import BROKEN, FORMED, BondGraph
from uqcalc.watching.runchecks import AseClock, RunChecks


POLICY = Policy([Threshold("max_force", 1e30, 1e30)])
NO_CHARGES = frozenset()


def predicted(atoms, forces=None):
    forces = np.zeros((len(atoms), 3)) if forces is None else forces
    return Prediction(
        **geometry(atoms),
        results={"energy": -1.0, "forces": forces},
        energy=-1.0,
        forces=forces,
        features=torch.zeros(len(atoms), 1),
    )


def doubts(atoms, flags=None):
    return (flags or Flags(NO_CHARGES))(predicted(atoms)).doubts


def test_it_keeps_the_contract_of_a_signal():
    check_signal(Flags(), predicted(molecule("CH3OH")))


def test_whole_molecules_are_flagged_only_for_an_odd_number_of_electrons():
    for name in g2.names:
        atoms = molecule(name)
        odd = atoms.numbers.sum() % 2 == 1
        nonmetals = not {3, 4, 5, 11, 12, 13} & set(atoms.numbers.tolist())
        found = doubts(atoms)
        assert len(found) == (odd and nonmetals), (name, found)
        atoms.info["charge"] = 0
        assert not doubts(atoms), "a stated charge makes it a radical"


def test_ions_are_named_unless_the_model_reads_charges():
    ammonium = molecule("CH4")
    ammonium.numbers[0] = 7
    ammonium.positions *= 1.02 / 1.09
    onium, odd = doubts(ammonium)
    assert "N0 has one bond more than a neutral atom" in onium
    assert "11 electrons" in odd
    assert not doubts(ammonium, Flags(frozenset({"charge"})))
    assert not doubts(ammonium, Flags(None))


def test_a_flag_is_suspect_in_every_policy_and_can_be_switched_off():
    atoms = molecule("CH3CH2OH")
    atoms.positions[8] += 3 * (atoms.positions[8] - atoms.positions[1]) / 4
    kinds = {}
    for flags in (True, False):
        calc = ReliableCalculator(
            ToyBackbone(), None, [MaxForce()], POLICY, flags=flags
        )
        kinds[flags] = calc.assess(atoms)
    assert kinds[True].level is Level.SUSPECT
    assert any(why.startswith("flags: ") for why in kinds[True].verdict.reasons)
    assert kinds[False].level is Level.RELIABLE


def test_labels_limit_coordination_and_regime():
    frames = [bulk("Cu", cubic=True) for _ in range(120)]
    for seed, atoms in enumerate(frames):
        atoms.rattle(0.05, seed=seed)
    forces = np.full((4, 3), 0.1)
    labels = [predicted(atoms, forces) for atoms in frames]
    said = Conditions(["melt", *[None] * 119], np.full(120, 300.0))
    limits = limits_of_labels(labels, said)
    assert limits["regimes"] == {"melt": 1, "near-equilibrium": 119}
    assert limits["temperature_K"] == 300.0
    flags = Flags(
        NO_CHARGES,
        Environments.from_dict(limits["environments"]),
        limits["regimes_by_rule"],
        limits["temperature_K"],
    )
    assert not flags(labels[0]).out_of_scope
    [hot] = flags(predicted(frames[0], 20 * forces)).unlabelled
    assert "the regime is 'hot', and the labels have only near-equilibrium" in hot
    dense = frames[0].copy()
    dense.set_cell(dense.cell * 0.85, scale_atoms=True)
    assert "closer neighbour than in any label" in str(flags(predicted(dense)).doubts)
    assert regimes_of([labels[0]], said.take(np.array([5]))) == ["near-equilibrium"]
    np.testing.assert_array_equal(geometry_of(labels[0]).numbers, frames[0].numbers)


def test_a_run_names_the_bonds_that_change():
    graph, atoms = BondGraph(BondFinder()), molecule("CH3CH2OH")
    oxygen = int(np.flatnonzero(atoms.numbers == 8)[0])
    hydrogens = np.flatnonzero(atoms.numbers == 1)
    proton = int(hydrogens[atoms.get_distances(oxygen, hydrogens).argmin()])
    assert graph(atoms) == ()
    vibrating = atoms.copy()
    vibrating.rattle(0.04, seed=1)
    assert graph(vibrating) == ()
    vibrating.set_distance(oxygen, proton, 2.0, fix=0)
    [reason] = graph(vibrating)
    low, high = sorted((oxygen, proton))
    names = f"{atoms.symbols[low]}{low}-{atoms.symbols[high]}{high}"
    assert reason == f"bonds changed since the first step, broken: {names}"
    assert graph(atoms) == ()


@pytest.mark.parametrize("periodic", [False, True])
def test_changed_bonds_are_those_of_a_search_from_scratch(periodic):
    graph, atoms = BondGraph(BondFinder()), molecule("CH3CH2OH")
    if periodic:
        atoms.set_cell([[4.6, 0, 0], [1.5, 5.1, 0], [0.3, 0.4, 4.9]])
        atoms.pbc = True
    random = np.random.default_rng(3)

    def closer(factor: float) -> set[tuple[int, int]]:
        i, j, apart = neighbor_list("ijd", atoms, 3.0)
        near = apart < factor * SINGLE[atoms.numbers[i], atoms.numbers[j]]
        return {*zip(i[near].tolist(), j[near].tolist(), strict=True)}

    assert graph(atoms) == ()
    first, changes = closer(BONDED), 0
    for _ in range(40):
        atoms.positions += random.normal(size=(len(atoms), 3)) * 0.05
        broken, formed = first - closer(BROKEN), closer(FORMED) - first
        found = graph(atoms)
        assert bool(found) is bool(broken | formed)
        changes += bool(found)
        for what, pairs in (("broken", broken), ("formed", formed)):
            assert (what in str(found)) is bool(pairs)
    assert 5 < changes < 40


@pytest.mark.parametrize(("hottest", "found"), [(100.0, True), (1e4, False)])
def test_a_run_hotter_than_the_labels_is_named(hottest, found):
    atoms = bulk("Cu", cubic=True).repeat(2)
    atoms.calc = EMT()
    atoms.get_potential_energy()
    atoms.set_momenta(np.full((len(atoms), 3), np.sqrt(63.5 * 300 * units.kB)))
    dynamics = VelocityVerlet(atoms, 1 * units.fs)
    flags = Flags(hottest=hottest)
    checks = RunChecks(AseClock(dynamics), [flags], POLICY)
    calc = ReliableCalculator(ToyBackbone(), None, [MaxForce()], POLICY)
    energy = float(atoms.calc.results["energy"])
    seen = checks(atoms, calc.assess(rattled("H2O")), energy)
    assert ("the temperature is 300 K" in str(seen)) is found


def test_a_monitored_run_reports_a_broken_bond():
    atoms = molecule("H2O")
    atoms.calc = ReliableCalculator(ToyBackbone(), None, [MaxForce()], POLICY)
    atoms.set_velocities([[0, 0, 0], [0, 0.12, -0.09], [0, 0, 0]])
    dynamics = VelocityVerlet(atoms, 1 * units.fs)
    monitor = Monitor(dynamics, on_unreliable="warn")
    dynamics.run(60)
    reasons = [why for event in monitor.history for why in event.reasons]
    assert any("broken: O0-H1" in why for why in reasons), Atoms(atoms)

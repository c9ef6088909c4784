"""Forces that vanish by symmetry have no information on elements and sizes."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.lj import LennardJones
from builders import rattled
from probe.toys import ToyBackbone

from uqcalc import ConformalInterval, Labels, LabelWarning, Recipe, fit
from uqcalc.agreement import vanishing
from uqcalc.errors import LabelError
from uqcalc.labels.dataset import build_dataset
from uqcalc.signals.probe import ProbeSignal


def labelled(names, count, *, seed=0):
    """Rattled molecules whose error grows with the distortion."""
    rng = np.random.default_rng(seed)
    frames = []
    for index in range(count):
        amount = rng.uniform(0.01, 0.3)
        frames.append(rattled(names[index % len(names)], seed=index, amount=amount))
        noise = amount * rng.normal(size=(len(frames[-1]), 3))
        frames[-1].arrays["REF_forces"] = noise
        frames[-1].info["run"] = index // 3
    predictions = ToyBackbone().predict_many(frames)
    for frame, prediction in zip(frames, predictions, strict=True):
        frame.arrays["REF_forces"] += prediction.forces
    return frames


def alone(symbol, **info):
    atoms = Atoms(symbol, info={"run": f"alone {symbol}", **info})
    atoms.arrays["REF_forces"] = np.zeros((1, 3))
    return atoms


def test_isolated_atoms_do_not_change_a_probe():
    frames = labelled(["H2O", "CH3OH", "C2H6", "CO2"], 96)
    labels, recipe = Labels(group_key="run", boundary=0.15), Recipe(epochs=4)
    mixed = [*frames[:5], alone("N"), *frames[5:], alone("N"), alone("N")]
    with pytest.warns(LabelWarning) as heard:
        report = fit(mixed, ToyBackbone(), labels, recipe)
    said = [str(w.message) for w in heard if "by symmetry" in str(w.message)]
    assert len(said) == 1
    assert said[0].startswith("3 of 99 frames (frames 5, 97, 98) have no force")
    card = report.probe.card
    assert card.elements == [1, 6, 8]
    assert card.sizes == [3, 8]
    assert card.training["excluded"] == {"no information": 3}
    assert report.report["excluded"] == {"no information": 3}
    ammonia = ToyBackbone()(molecule("NH3"), ["energy", "forces"])
    reading = ProbeSignal(report.probe)(ammonia)
    assert torch.isnan(torch.as_tensor(reading.risk))
    assert "['N']" in reading.note
    # the same frames without them give the same probe, number for number
    with pytest.warns(LabelWarning, match="at least 200"):
        clean = fit(frames, ToyBackbone(), labels, recipe)
    np.testing.assert_array_equal(report.probability, clean.probability)
    assert card.boundary == clean.probe.card.boundary
    assert str(card.scope) == str(clean.probe.card.scope)


def pair_sum(atoms, calculator):
    atoms = atoms.copy()
    atoms.calc = calculator
    return atoms.get_forces()


def crystals():
    """Perfect fcc and NaCl, and the same with one atom displaced."""
    perfect = [bulk("Cu", "fcc", 3.6), bulk("NaCl", "rocksalt", 5.6)]
    perfect += [bulk("Cu", "fcc", 2.9, cubic=True), bulk("C", "diamond", 3.57)]
    moved = []
    for atoms in (bulk("Cu", "fcc", 3.6, cubic=True), bulk("NaCl", "rocksalt", 5.6)):
        atoms.positions[0] += [0.02, 0.0, 0.01]
        moved.append(atoms)
    return perfect, moved


def test_perfect_crystals_vanish_at_any_scale_and_displaced_ones_never():
    truth, other = LennardJones(sigma=2.3, epsilon=0.5), LennardJones(sigma=2.0, rc=9)
    perfect, moved = crystals()
    for atoms in perfect:
        for scale in (0.9, 1.0, 1.3):
            atoms = atoms.copy()
            atoms.set_cell(scale * atoms.cell, scale_atoms=True)
            assert vanishing(pair_sum(atoms, other), pair_sum(atoms, truth)).all()
    for atoms in moved:
        assert not vanishing(pair_sum(atoms, other), pair_sum(atoms, truth)).all()


def test_relaxed_structures_keep_their_information():
    """Relaxed with the potential or with the reference: the other one has forces."""
    relaxed = Atoms("Ar2", [[0, 0, 0], [0, 0, 2.3 * 2 ** (1 / 6)]])
    truth, other = LennardJones(sigma=2.3, rc=30), LennardJones(sigma=2.25, rc=30)
    minimum = pair_sum(relaxed, truth)
    assert np.abs(minimum).max() < 1e-4
    assert not vanishing(pair_sum(relaxed, other), minimum).any()
    assert not vanishing(minimum, pair_sum(relaxed, other)).any()
    assert not vanishing([[np.nan] * 3], [[0.0] * 3]).any()


def test_atoms_on_symmetric_sites_have_no_error_and_energies_keep_their_frames():
    frames = [molecule("CH4") for _ in range(3)]
    for index, atoms in enumerate(frames):
        atoms.info["REF_energy"] = float(index)
        forces = ToyBackbone()(atoms, ["forces"]).forces.copy()
        forces[1:] += 0.1
        atoms.arrays["REF_forces"] = forces  # the force on carbon vanishes
        atoms.positions += index  # no duplicate
    with_atom = [*frames, alone("C", REF_energy=-3.0)]
    data = build_dataset(with_atom, ToyBackbone(), Labels("energy"))
    assert len(data) == 4
    assert data.excluded == {}
    for errors in data.atom_errors[:3]:
        assert np.isnan(errors[0])
        np.testing.assert_allclose(errors[1:], 0.1 * 3**0.5, rtol=1e-9)
    assert np.isnan(data.atom_errors[3]).all()
    with pytest.warns(LabelWarning, match=r"1 of 4 frames \(frames 3\) have no force"):
        data = build_dataset(with_atom, ToyBackbone(), Labels())
    assert data.excluded == {"no information": [3]}
    expected = 0.1 * np.sqrt(12 / 15)
    np.testing.assert_allclose(data.errors, expected, rtol=1e-9)


def test_isolated_atoms_alone_are_refused():
    with pytest.raises(LabelError, match=r"none .*'no information': 2"):
        build_dataset([alone("H"), alone("O")], ToyBackbone(), Labels())


def test_bounds_of_other_signals_leave_them_out():
    frames = labelled(["H2O", "CH3OH"], 30)
    labels = Labels(group_key="run")
    alone_ones = [alone("N", run=f"alone {i}") for i in range(30)]
    with pytest.warns(LabelWarning, match="30 of 60 frames"):
        mixed = ConformalInterval.fit(
            [*alone_ones, *frames], ToyBackbone(), labels=labels, coverage=0.8
        )
    clean = ConformalInterval.fit(frames, ToyBackbone(), labels=labels, coverage=0.8)
    assert mixed.card.settings["factor"] == clean.card.settings["factor"]
    assert mixed.card.elements == [1, 6, 8]

"""What dooms a probe is said at once, and nothing is said of a healthy set."""

import warnings

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk
from ase.md.langevin import Langevin
from builders import rattled
from probe.toys import Cohesion

from uqcalc import Labels, LabelWarning
from uqcalc.errors import LabelError
from uqcalc.probe.labelling.prospects import find_series, warn_of_prospects


NAMES = ["H2O", "CH3OH", "NH3", "C2H6", "CH4", "CO2", "C2H4", "HCN", "H2CO", "N2H4"]


def independent(count, names=NAMES):
    """Rattled by amounts that differ from frame to frame."""
    amounts = np.random.default_rng(0).uniform(0.01, 0.3, count)
    frames = []
    for index, amount in enumerate(amounts):
        name = names[index % len(names)]
        frames.append(rattled(name, seed=index, amount=amount))
        frames[-1].info |= {"molecule": name, "batch": str(index % 30)}
    return frames


BY_MOLECULE = Labels(group_key="molecule")


def said(frames, labels=BY_MOLECULE):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_prospects(frames, labels)
    assert all(w.category is LabelWarning for w in caught)
    return [str(w.message) for w in caught]


def run(count, stride=10, seed=0):
    """Frames of one Langevin run in a made-up potential."""
    atoms = rattled("C2H6", seed=seed)
    atoms.calc = Cohesion()
    rng = np.random.RandomState(seed)
    dyn = Langevin(
        atoms, units.fs, temperature_K=300, friction=0.01, rng=rng, fixcm=False
    )
    frames = []
    dyn.attach(lambda: frames.append(atoms.copy()), interval=stride)
    dyn.run(stride * (count - 1))
    return frames


def test_a_healthy_set_is_passed_over():
    assert said(independent(200), Labels(group_key="batch")) == []


def test_few_structures_and_few_groups_are_counted():
    few, some = said(independent(199))
    assert "at least 200 labelled structures, got 199" in few
    assert "at least 30 groups, got 10 by 'molecule'" in some
    (groups,) = said(independent(210, NAMES[:3]))
    assert "at least 10 groups, got 3 by 'molecule'" in groups


def test_one_molecule_only():
    alone, same = said(independent(210, NAMES[:1]))
    assert "one molecule only (molecule 'H2O')" in alone
    assert "one molecule only (H2O)" in same
    with pytest.raises(LabelError, match="frame 0 must have the group key 'run'"):
        warn_of_prospects(independent(3), Labels(group_key="run"))


def test_frames_of_one_run_without_a_group_key():
    frames = run(210)
    assert find_series(frames) == ["C2H6"]
    one, series = said(frames, Labels())
    assert "one molecule only" in one
    assert "C2H6 has frames that follow each other" in series
    assert "group_key" in series
    mixed = [*independent(200), *frames[:40]]
    assert find_series(mixed) == ["C2H6"]
    order = np.random.default_rng(0).permutation(len(frames))
    assert find_series([frames[i] for i in order]) == []  # they cannot be told then


def test_a_run_of_a_crystal_is_seen_across_its_boundary():
    crystal = bulk("Cu", cubic=True)
    rng = np.random.default_rng(0)
    walk = np.cumsum(rng.normal(0, 0.02, (60, 4, 3)), axis=0)
    free = rng.normal(0, 0.1, (60, 4, 3))
    for moves, expected in ((walk, ["Cu4"]), (free, [])):
        frames = []
        for move in moves:
            atoms = crystal.copy()
            atoms.positions += move
            atoms.wrap()
            frames.append(atoms)
        assert find_series(frames) == expected


@pytest.mark.parametrize("seed", range(20))
def test_independent_frames_are_no_run(seed):
    rng = np.random.default_rng(seed)
    calm = rng.random(25) < 0.5  # half are relaxed, half are shaken
    frames = [
        rattled("CH3OH", seed=100 * seed + i, amount=0.002 if c else 0.3)
        for i, c in enumerate(calm)
    ]
    assert find_series(frames) == []


def test_many_frames_of_few_compositions_without_a_group_key():
    (together,) = said(independent(210), Labels())
    assert "210 frames have 10 compositions" in together
    assert "--group formula" in together
    (few,) = said(independent(210), Labels(group_key="formula"))
    assert "at least 30 groups, got 10 by 'formula'" in few
    assert said([], Labels()) == []
    lone = [Atoms("H", positions=[[0, 0, i]]) for i in range(2)]
    assert len(said(lone, Labels())) == 2  # few, and one molecule only

"""Several targets from one set of labels: each frame is evaluated once."""

import math
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from toys import ToyBackbone

from uqcalc import Labels, Probe, Recipe, ReliableCalculator, fit_targets
from uqcalc.backbones.base import Capture
from uqcalc.errors import LabelError


class Surroundings(ToyBackbone):
    """EMT with the energy of each atom and its distances to neighbours as features."""

    def __init__(self):
        super().__init__(EMT(), "surroundings:1")
        self.feature_dim = 4

    @contextmanager
    def armed(self):
        captured = Capture([], [])
        yield captured
        atoms = self.calculator.atoms
        near = np.sort(atoms.get_all_distances(mic=True), axis=1)[:, 1:]
        energies = self.calculator.results["energies"]
        rows = np.column_stack(
            [energies, near.min(axis=1), near.std(axis=1), near[:, 1]]
        )
        captured.features.append(torch.from_numpy(rows))


def strained(count):
    """Return copper between compressed and stretched, labelled by another theory."""
    frames = []
    for seed in range(count):
        rng = np.random.default_rng(seed)
        atoms = bulk("Cu", cubic=True)
        atoms.set_cell(atoms.cell * rng.uniform(0.92, 1.08), scale_atoms=True)
        atoms.rattle(rng.uniform(0.01, 0.2), seed=seed)
        atoms.calc = LennardJones(sigma=2.28, epsilon=0.42, rc=7.0, smooth=True)
        atoms.get_stress()
        frames.append(atoms)
    return frames


LABELS = Labels(forces_key="forces", stress_key="stress", energy_key="energy")


@pytest.mark.filterwarnings("ignore::uqcalc.LabelWarning")
def test_one_evaluation_gives_a_probe_for_each_target(tmp_path):
    backbone, frames = Surroundings(), strained(240)
    targets = {"forces": "0.5 eV/Å", "stress": "5 GPa"}
    recipe = Recipe(epochs=5, folds=2)
    found = fit_targets(frames, backbone, targets, LABELS, recipe)
    assert list(found) == ["forces", "stress"]
    assert backbone.passes == 240 + 2  # two passes check the stored features
    assert {name: report.probe.card.target for name, report in found.items()} == {
        "forces": "forces",
        "stress": "stress",
    }
    assert all(report.report["auroc"] > 0.7 for report in found.values())
    calc = ReliableCalculator(
        Surroundings(), probe=[report.probe for report in found.values()]
    )
    stretched = bulk("Cu", cubic=True)
    stretched.set_cell(stretched.cell * 1.5, scale_atoms=True)
    stretched.rattle(0.05, seed=1)
    stress = calc.assess(stretched).reading("probe_stress")
    assert stress.risk > 0.8 or stress.out_of_scope
    assert found["stress"].probe.reads_stress
    assert not found["forces"].probe.reads_stress
    again = Probe.load(found["stress"].probe.save(tmp_path / "stress.probe"))
    cell = backbone(stretched, ["energy", "forces", "stress"])
    assert again.read([cell]).reliability == found["stress"].probe([cell])[0]
    cluster = stretched.copy()
    cluster.pbc = False
    none = calc.assess(cluster).reading("probe_stress")
    assert math.isnan(none.risk)
    assert none.note == "only structures with three cell vectors have a stress"


@pytest.mark.parametrize("targets", ["stress", {}, ()])
def test_targets_are_several_names(targets):
    with pytest.raises(LabelError, match="targets must be several names"):
        fit_targets(strained(1), Surroundings(), targets)


def test_an_unknown_target_or_a_boundary_of_another_kind_is_refused_at_once():
    with pytest.raises(LabelError, match="target must be one of"):
        fit_targets(strained(1), Surroundings(), ("forces", "virial"))
    with pytest.raises(LabelError, match="must be a stress"):
        fit_targets(strained(1), Surroundings(), {"stress": "0.1 eV/Å"})

"""Averages over rotations: one pass for each, and closer to invariance."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase.calculators.calculator import Calculator, all_changes
from ase.constraints import FixAtoms
from ase.stress import full_3x3_to_voigt_6_stress, voigt_6_to_full_3x3_stress
from backbones.orbs import default_dtype, orb_calculator
from backbones.toys import (
    ModuleCalculator,
    mace_on_shared_models,
    reads_spread,
    tapped_module,
)
from builders import rattled
from closeness import FLOAT64, close
from scipy.spatial.transform import Rotation

from uqcalc import (
    Committee,
    ForceDelta,
    RotationAverage,
    tap,
)
from uqcalc.errors import BackboneError
from uqcalc.testing import check_backbone, contract_frames


ALL = contract_frames()
MOLECULES = {name: ALL[name] for name in ("molecule", "atom")}
WANTED = ["energy", "forces", "stress"]
RNG = np.random.default_rng


class Skewed(ModuleCalculator):
    """A potential without rotational symmetry: directions differ."""

    def forward(self, atoms, positions):
        stretch = torch.tensor([1.0, 1.0, 1.2], dtype=positions.dtype)
        return super().forward(atoms, positions * stretch)


class Stretched(Calculator):
    """MACE of the structure stretched along z, also of a crystal."""

    implemented_properties = ["energy", "forces", "stress"]  # noqa: RUF012

    def __init__(self, factor=1.05):
        super().__init__()
        self.inner = mace_on_shared_models()
        self.factors = np.array([1.0, 1.0, factor])

    def calculate(self, atoms=None, properties=(), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        drawn = atoms.copy()
        drawn.set_cell(atoms.cell.array * self.factors)
        drawn.positions *= self.factors
        self.inner.calculate(drawn, ["energy", "forces", "stress"])
        given = self.inner.results
        self.results = {
            "energy": given["energy"],
            "forces": given["forces"] * self.factors,
        }
        if atoms.cell.rank == 3:
            full = voigt_6_to_full_3x3_stress(given["stress"]) * self.factors.prod()
            slope = full * self.factors[:, None] / self.factors
            self.results["stress"] = full_3x3_to_voigt_6_stress((slope + slope.T) / 2)


def uneven(calculator=Stretched, module="inner.models.0.products.1.linear"):
    backbone = tap(calculator(), module=module)
    backbone.invariant_features = False
    return backbone


def turned(atoms, rotation):
    copy = atoms.copy()
    copy.set_constraint()
    copy.set_cell(rotation.apply(atoms.cell.array))
    copy.positions = rotation.apply(atoms.positions)
    return copy


AVERAGES = {
    "of an invariant potential": (
        lambda: RotationAverage(mace_on_shared_models(), 2),
        {name: ALL[name] for name in ("molecule", "film")},
    ),
    "of an uneven potential": (
        lambda: RotationAverage(uneven(), 3),
        {name: ALL[name] for name in ("atom", "crystal")},
    ),
    "of a committee": (
        lambda: RotationAverage(
            Committee([tapped_module(0), tapped_module(1, Skewed)]), 2
        ),
        MOLECULES,
    ),
}


class TestRotationAverage:
    @pytest.mark.parametrize("name", AVERAGES)
    def test_contract(self, name):
        """With forces and stress against differences of the averaged energy."""
        make, frames = AVERAGES[name]
        check_backbone(make, frames)

    @pytest.mark.parametrize("name", ALL)
    def test_leaves_an_invariant_potential_as_it_is(self, name):
        atoms = ALL[name]
        single = tap(mace_on_shared_models())(atoms, WANTED)
        averaged = RotationAverage(mace_on_shared_models(), 5)(atoms, WANTED)
        # MACE adds a box in the directions that are not periodic
        for key in WANTED if atoms.pbc.all() else WANTED[:2]:
            # a lone atom has no force: its terms are those of an energy over 1 Å
            size = np.append(single.results[key], single.energy)
            close(averaged.results[key], single.results[key], FLOAT64, of=size)
        close(averaged.features, single.features, FLOAT64)

    def test_one_rotation_changes_nothing(self):
        atoms = ALL["crystal"]
        single = uneven()(atoms, WANTED)
        averaged = RotationAverage(uneven(), 1)(atoms, WANTED)
        for key in WANTED:
            assert np.array_equal(averaged.results[key], single.results[key])
        assert torch.equal(averaged.features, single.features)

    def test_is_the_mean_over_turned_copies(self):
        """Rotated in the test, with the same random rotations."""
        atoms, backbone = ALL["crystal"], RotationAverage(uneven(), 4, seed=3)
        got = backbone(atoms, WANTED)
        draw = Rotation.random(3, RNG(3))
        rotations = [Rotation.identity(), *draw]
        parts = [uneven()(turned(atoms, r), WANTED) for r in rotations]
        close(got.energy, np.mean([p.energy for p in parts]), FLOAT64)
        forces = [
            r.inv().apply(p.forces) for r, p in zip(rotations, parts, strict=True)
        ]
        close(got.forces, np.mean(forces, axis=0), FLOAT64)
        features = torch.stack([p.features for p in parts]).mean(0)
        close(got.features, features, FLOAT64)

    def test_comes_closer_to_invariance_with_more_rotations(self):
        atoms = rattled()
        seen = [turned(atoms, r) for r in Rotation.random(24, RNG(8))]
        spreads = {}
        for count in (1, 4, 16):
            backbone = RotationAverage(tapped_module(0, Skewed), count)
            got = [backbone(frame, WANTED) for frame in seen]
            features = torch.stack([one.features for one in got])
            spreads[count] = (
                np.std([one.energy for one in got]),
                float(features.std(0).max()),
            )
        for fewer, more in ((1, 4), (4, 16)):
            for before, after in zip(spreads[fewer], spreads[more], strict=True):
                assert after < 0.75 * before, spreads

    def test_of_orb_gives_both_forces(self):
        """On demand, as Orb itself does, and closer to rotational symmetry."""
        pytest.importorskip("orb_models")
        wanted = ["energy", "forces", "conservative_forces"]
        draw = Rotation.random(8, RNG(2))
        errors = []
        with default_dtype(torch.float64):
            frames = {name: ALL[name] for name in ("molecule", "crystal")}
            check_backbone(lambda: RotationAverage(orb_calculator(), 2), frames)
            for rotations in (1, 12):
                backbone = RotationAverage(orb_calculator(), rotations)
                got = [backbone(turned(ALL["molecule"], r), wanted) for r in draw]
                back = [
                    r.inv().apply(getattr(one, name))
                    for name in ("direct_forces", "conservative_forces")
                    for r, one in zip(draw, got, strict=True)
                ]
                errors.append([np.std(back[:8], 0).max(), np.std(back[8:], 0).max()])
                assert ForceDelta()(got[0]).risk > 0
        assert np.all(np.array(errors[1]) < 0.6 * np.array(errors[0])), errors

    def test_costs_as_many_passes_as_rotations(self):
        inner = tap(mace_on_shared_models(0, 1))
        atoms = rattled()
        atoms.calc = reads_spread(RotationAverage(inner, 4))
        for step in range(2):
            atoms.get_forces()
            atoms.get_potential_energy()
            atoms.rattle(0.01, seed=step)
        assert inner.passes == atoms.calc.backbone.passes == 2 * 4 * 2

    def test_constraints_do_not_affect_the_copies(self):
        atoms = rattled()
        free = RotationAverage(tapped_module(0, Skewed), 3)(atoms, WANTED)
        atoms.set_constraint(FixAtoms([0, 2]))
        held = RotationAverage(tapped_module(0, Skewed), 3)(atoms, WANTED)
        assert np.array_equal(held.forces, free.forces)
        assert held.fixed.tolist() == [True, False, True, False, False, False]

    def test_fingerprint_tells_number_and_seed(self):
        def named(*args, **options):
            return RotationAverage(tapped_module(), *args, **options).fingerprint

        assert named(3) == named(3, seed=0)
        assert (
            len({named(2), named(3), named(3, seed=1), tapped_module().fingerprint})
            == 4
        )

    @pytest.mark.parametrize("rotations", [0, -1, 2.0, True, "4"])
    def test_refuses_an_invalid_number(self, rotations):
        with pytest.raises(BackboneError, match="integer of at least 1, got"):
            RotationAverage(mace_on_shared_models(), rotations)

"""Several evaluations for each geometry: committees and averages over rotations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT
from ase.calculators.mixing import SumCalculator
from ase.constraints import FixAtoms
from ase.stress import full_3x3_to_voigt_6_stress, voigt_6_to_full_3x3_stress
from backbones.orbs import default_dtype, orb_calculator
from backbones.toys import (
    ModuleCalculator,
    Springs,
    chgnet,
    mace_on_shared_models,
)
from builders import rattled, salt
from closeness import FLOAT64, NETWORK, close
from scipy.spatial.transform import Rotation

from uqcalc import (
    Committee,
    ForceDelta,
    ForceSpread,
    Policy,
    ReliableCalculator,
    RotationAverage,
    Threshold,
    tap,
)
from uqcalc.backbones.fingerprint import CONVERTED, combined, same_model
from uqcalc.errors import BackboneError
from uqcalc.testing import check_backbone, contract_frames


ALL = contract_frames()
MOLECULES = {name: ALL[name] for name in ("molecule", "atom")}
WANTED = ["energy", "forces", "stress"]
RNG = np.random.default_rng


def toy(seed=0, calculator=ModuleCalculator):
    return tap(calculator(seed), module="model.readout")


def spread(backbone, atoms):
    return ForceSpread()(backbone(atoms, WANTED))


class Counting(Springs):
    """Springs that know how often they were asked, and of which geometry."""

    def __init__(self, stiffness=0.3):
        super().__init__(stiffness)
        self.asked = []

    def calculate(self, atoms=None, properties=(), system_changes=all_changes):
        self.asked.append(atoms.positions.copy())
        super().calculate(atoms, properties, system_changes)


def reliable(backbone):
    policy = Policy([Threshold("force_spread", suspect=50.0, unreliable=90.0)])
    return ReliableCalculator(backbone, signals=[ForceSpread()], policy=policy)


class Squares(torch.nn.Module):
    """Without the layer that is tapped."""

    def forward(self, numbers, positions):
        return positions.square().sum()


class EnergyOnly(Calculator):
    implemented_properties = ["energy"]  # noqa: RUF012


def in_a_row():
    """A potential of a kind of its own, a committee, and one that nobody can tap."""
    return Committee(
        [toy(), mace_on_shared_models(0, 1), SumCalculator([Springs(), Springs(0.1)])]
    )


COMMITTEES = {
    "two MACE": (
        lambda: Committee([mace_on_shared_models(s) for s in (0, 1)]),
        {"film": ALL["film"]},
    ),
    "mixed": (in_a_row, MOLECULES),
    "CHGNet and MACE": (
        lambda: Committee([chgnet(), mace_on_shared_models()]),
        {"salt": ALL["crystal"]},
    ),
}


class TestCommittee:
    @pytest.mark.parametrize("name", COMMITTEES)
    def test_contract(self, name):
        make, frames = COMMITTEES[name]
        check_backbone(make, frames)

    def test_is_the_mean_of_its_members(self):
        atoms = salt()
        got = Committee([mace_on_shared_models(s) for s in (0, 1)])(atoms, WANTED)
        singles = [tap(mace_on_shared_models(s))(atoms, WANTED) for s in (0, 1)]
        for key in WANTED:
            mean = np.mean([one.results[key] for one in singles], axis=0)
            close(got.results[key], mean, FLOAT64)
        energies = [one.energy for one in singles]
        assert got.results["energy_comm"].tolist() == energies  # the same passes
        for member, one in zip(got.committee_forces, singles, strict=True):
            assert np.array_equal(member, one.forces)
        assert torch.equal(got.features, singles[0].features)

    def test_matrices_and_vectors_of_stress_have_a_mean(self):
        atoms = ALL["crystal"]
        both = Committee([chgnet(), mace_on_shared_models()])(atoms, WANTED)
        matrix = tap(chgnet())(atoms, WANTED).results["stress"]
        six = tap(mace_on_shared_models())(atoms, WANTED).results["stress"]
        mean = (full_3x3_to_voigt_6_stress(matrix) + six) / 2
        close(both.results["stress"], mean, NETWORK)

    def test_stress_needs_all_members(self):
        assert "stress" in Committee([mace_on_shared_models(), Springs()]).provides
        assert "stress" not in Committee([mace_on_shared_models(), toy()]).provides

    @pytest.mark.parametrize(("members", "noise"), [(2, 0.0), (3, FLOAT64)])
    def test_identical_members_agree(self, members, noise):
        """The mean of three equal numbers may be another one, by its last bit."""
        same = [mace_on_shared_models() for _ in range(members)]
        committee, atoms = Committee(same), salt()
        noise *= np.abs(committee(atoms, WANTED).forces).max()
        reading = spread(committee, atoms)
        assert reading.risk <= noise
        assert reading.results["force_spreads"].max() <= noise

    def test_spread_of_two_is_half_their_difference(self):
        atoms = rattled()
        reading = spread(Committee([toy(0), toy(1)]), atoms)
        one, other = (toy(seed)(atoms, WANTED).forces for seed in (0, 1))
        half = (one - other) / 2
        close(reading.risk, np.sqrt(np.mean(half**2)), FLOAT64, of=one)
        per_atom = np.sqrt(np.mean(half**2, axis=1))
        close(reading.results["force_spreads"], per_atom, FLOAT64, of=one)

    def test_spread_of_springs_is_that_of_their_stiffness(self):
        atoms, stiffness = rattled(), np.array([0.0, 0.2, 0.7])
        members = [toy(), *(Springs(k) for k in stiffness)]
        got = Committee(members)(atoms, WANTED).committee_forces[1:]
        arms = atoms.positions - atoms.positions.mean(axis=0)
        close(got.std(axis=0), stiffness.std() * np.abs(arms), FLOAT64)

    def test_each_member_is_evaluated_once_a_geometry(self):
        plain = [Counting(), Counting()]
        tapped = [mace_on_shared_models(0, 1), ModuleCalculator()]
        members = [tap(tapped[0]), tap(tapped[1], module="model.readout"), *plain]
        atoms = rattled()
        atoms.calc = reliable(Committee(members))
        geometries = []
        for step in range(3):
            geometries.append(atoms.positions.copy())
            atoms.get_forces()
            atoms.get_potential_energy()
            atoms.rattle(0.01, seed=step)
        assert atoms.calc.backbone.passes == 3 * (2 + 1 + 1 + 1)
        assert [member.passes for member in members[:2]] == [6, 3]
        for one in plain:
            assert np.array_equal(one.asked, geometries)

    def test_members_that_write_into_their_answers_are_not_mixed_up(self):
        """EMT's forces are one array that each evaluation fills."""
        shared = EMT()
        copper, moved = bulk("Cu"), bulk("Cu")
        moved.rattle(0.1, seed=2)
        backbone = Committee([tap(chgnet()), shared, shared])
        first = backbone(moved, WANTED)
        kept = first.committee_forces.copy()
        backbone(copper, WANTED)
        assert np.array_equal(first.committee_forces, kept)
        assert np.array_equal(kept[1], kept[2])

    def test_charge_counts_where_a_member_reads_it(self):
        backbone = Committee([toy(), mace_on_shared_models()])
        atoms = rattled()
        before = backbone.extra_state(atoms)
        atoms.info["charge"] = 1
        assert backbone.extra_state(atoms) != before

    def test_elements_are_those_that_all_members_know(self):
        backbone = Committee([chgnet(), mace_on_shared_models()])
        assert backbone.elements == {1, 6, 7, 8, 11, 17}
        with pytest.raises(BackboneError, match=r"this mace model, got \['Si'\]"):
            backbone(bulk("Si"), WANTED)
        assert backbone.passes == 0

    def test_a_member_whose_tap_is_silent_is_refused(self):
        silent = ModuleCalculator()
        member = tap(silent, module="model.readout")
        silent.model = Squares()
        with pytest.raises(BackboneError, match=r"fire 1 time\(s\).*got 0"):
            Committee([toy(), member])(rattled(), WANTED)

    def test_fingerprint_is_of_all_members_in_order(self):
        def named(*calculators):
            return Committee(calculators).fingerprint

        one, other = mace_on_shared_models(0), mace_on_shared_models(1)
        assert named(one, other) == named(one, mace_on_shared_models(1))
        different = {named(one, other), named(other, one), named(one, one)}
        different |= {named(one, EMT()), named(one, EMT(asap_cutoff=True))}
        assert len(different) == 5

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (list, "at least two calculators, got list"),
            (lambda: [EMT()], "at least two calculators, got 1"),
            (EMT, "at least two calculators, got EMT"),
            (lambda: [EMT(), Springs()], "can be tapped .*got EMT"),
            (lambda: [toy(), "mace"], "must be an ASE calculator, got str"),
            (lambda: [toy(), EnergyOnly()], r"got EnergyOnly without \['forces'\]"),
            (
                lambda: [toy(), reliable(Committee([toy(), toy()]))],
                "not be wrapped already",
            ),
        ],
    )
    def test_refusals(self, make, message):
        with pytest.raises(BackboneError, match=message):
            Committee(make())


class Skewed(ModuleCalculator):
    """Knows up from sideways: what a potential without symmetry might learn."""

    def forward(self, atoms, positions):
        stretch = torch.tensor([1.0, 1.0, 1.2], dtype=positions.dtype)
        return super().forward(atoms, positions * stretch)


class Stretched(Calculator):
    """MACE of the structure drawn out along z, also of a crystal."""

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
        lambda: RotationAverage(Committee([toy(0), toy(1, Skewed)]), 2),
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
        # MACE makes up a box in the directions that are not periodic
        for key in WANTED if atoms.pbc.all() else WANTED[:2]:
            # a lone atom has no force: its terms are those of an energy over 1 Å
            size = np.append(single.results[key], single.energy)
            close(averaged.results[key], single.results[key], FLOAT64, of=size)
        close(averaged.features, single.features, FLOAT64)

    def test_one_rotation_is_none(self):
        atoms = ALL["crystal"]
        single = uneven()(atoms, WANTED)
        averaged = RotationAverage(uneven(), 1)(atoms, WANTED)
        for key in WANTED:
            assert np.array_equal(averaged.results[key], single.results[key])
        assert torch.equal(averaged.features, single.features)

    def test_is_the_mean_over_turned_copies(self):
        """Turned by hand, with the same draw."""
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
            backbone = RotationAverage(toy(0, Skewed), count)
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
        """On demand, as Orb itself does, and closer to what they should be."""
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
        atoms.calc = reliable(RotationAverage(inner, 4))
        for step in range(2):
            atoms.get_forces()
            atoms.get_potential_energy()
            atoms.rattle(0.01, seed=step)
        assert inner.passes == atoms.calc.backbone.passes == 2 * 4 * 2

    def test_constraints_do_not_hold_the_copies_back(self):
        atoms = rattled()
        free = RotationAverage(toy(0, Skewed), 3)(atoms, WANTED)
        atoms.set_constraint(FixAtoms([0, 2]))
        held = RotationAverage(toy(0, Skewed), 3)(atoms, WANTED)
        assert np.array_equal(held.forces, free.forces)
        assert held.fixed.tolist() == [True, False, True, False, False, False]

    def test_fingerprint_tells_number_and_seed(self):
        def named(*args, **options):
            return RotationAverage(toy(), *args, **options).fingerprint

        assert named(3) == named(3, seed=0)
        assert len({named(2), named(3), named(3, seed=1), toy().fingerprint}) == 4

    @pytest.mark.parametrize("rotations", [0, -1, 2.0, True, "4"])
    def test_refuses_a_number_that_is_none(self, rotations):
        with pytest.raises(BackboneError, match="integer of at least 1, got"):
            RotationAverage(mace_on_shared_models(), rotations)


def test_combinations_are_of_one_model_when_their_parts_are():
    names = ["mace:1-aa", f"mace:1-{CONVERTED}", "mace:1-bb", "mace:2-aa"]
    one, converted, other, another = (combined("x", [n, "toy:0"]) for n in names)
    assert same_model(one, converted)
    assert not same_model(one, other)
    assert not same_model(converted, another)
    assert "-" not in combined("x", ["toy:0", "toy:1"])

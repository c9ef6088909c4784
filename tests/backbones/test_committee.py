"""A committee: the mean of its members and their spread, one pass of each."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT
from ase.calculators.mixing import SumCalculator
from ase.stress import full_3x3_to_voigt_6_stress
from backbones.toys import (
    ModuleCalculator,
    Springs,
    chgnet,
    mace_on_shared_models,
    reads_spread,
    tapped_module,
)
from builders import rattled, salt
from closeness import FLOAT64, NETWORK, close

from uqcalc import (
    Committee,
    ForceSpread,
    tap,
)
from uqcalc.backbones.fingerprint import CONVERTED, combined, same_model
from uqcalc.errors import BackboneError
from uqcalc.testing import check_backbone, contract_frames


ALL = contract_frames()
MOLECULES = {name: ALL[name] for name in ("molecule", "atom")}
WANTED = ["energy", "forces", "stress"]
RNG = np.random.default_rng


def spread(backbone, atoms):
    return ForceSpread()(backbone(atoms, WANTED))


class Counting(Springs):
    """Springs that count their evaluations, with the geometries."""

    def __init__(self, stiffness=0.3):
        super().__init__(stiffness)
        self.asked = []

    def calculate(self, atoms=None, properties=(), system_changes=all_changes):
        self.asked.append(atoms.positions.copy())
        super().calculate(atoms, properties, system_changes)


class Squares(torch.nn.Module):
    """Without the layer that is tapped."""

    def forward(self, numbers, positions):
        return positions.square().sum()


class EnergyOnly(Calculator):
    implemented_properties = ["energy"]  # noqa: RUF012


def in_a_row():
    """A potential of another kind, a committee, and one that cannot be tapped."""
    return Committee(
        [
            tapped_module(),
            mace_on_shared_models(0, 1),
            SumCalculator([Springs(), Springs(0.1)]),
        ]
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
        assert (
            "stress"
            not in Committee([mace_on_shared_models(), tapped_module()]).provides
        )

    @pytest.mark.parametrize(("members", "noise"), [(2, 0.0), (3, FLOAT64)])
    def test_identical_members_agree(self, members, noise):
        """The mean of three equal numbers may differ in its last bit."""
        same = [mace_on_shared_models() for _ in range(members)]
        committee, atoms = Committee(same), salt()
        noise *= np.abs(committee(atoms, WANTED).forces).max()
        reading = spread(committee, atoms)
        assert reading.risk <= noise
        assert reading.results["force_spreads"].max() <= noise

    def test_spread_of_two_is_half_their_difference(self):
        atoms = rattled()
        reading = spread(Committee([tapped_module(0), tapped_module(1)]), atoms)
        one, other = (tapped_module(seed)(atoms, WANTED).forces for seed in (0, 1))
        half = (one - other) / 2
        close(reading.risk, np.sqrt(np.mean(half**2)), FLOAT64, of=one)
        per_atom = np.sqrt(np.mean(half**2, axis=1))
        close(reading.results["force_spreads"], per_atom, FLOAT64, of=one)

    def test_spread_of_springs_is_that_of_their_stiffness(self):
        atoms, stiffness = rattled(), np.array([0.0, 0.2, 0.7])
        members = [tapped_module(), *(Springs(k) for k in stiffness)]
        got = Committee(members)(atoms, WANTED).committee_forces[1:]
        arms = atoms.positions - atoms.positions.mean(axis=0)
        close(got.std(axis=0), stiffness.std() * np.abs(arms), FLOAT64)

    def test_each_member_is_evaluated_once_a_geometry(self):
        plain = [Counting(), Counting()]
        tapped = [mace_on_shared_models(0, 1), ModuleCalculator()]
        members = [tap(tapped[0]), tap(tapped[1], module="model.readout"), *plain]
        atoms = rattled()
        atoms.calc = reads_spread(Committee(members))
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
        backbone = Committee([tapped_module(), mace_on_shared_models()])
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

    def test_member_without_features_is_refused(self):
        silent = ModuleCalculator()
        member = tap(silent, module="model.readout")
        silent.model = Squares()
        with pytest.raises(BackboneError, match=r"called 1 time\(s\).*got 0"):
            Committee([tapped_module(), member])(rattled(), WANTED)

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
            (lambda: [tapped_module(), "mace"], "must be an ASE calculator, got str"),
            (
                lambda: [tapped_module(), EnergyOnly()],
                r"got EnergyOnly without \['forces'\]",
            ),
            (
                lambda: [
                    tapped_module(),
                    reads_spread(Committee([tapped_module(), tapped_module()])),
                ],
                "not be wrapped already",
            ),
        ],
    )
    def test_refusals(self, make, message):
        with pytest.raises(BackboneError, match=message):
            Committee(make())


def test_combinations_are_of_one_model_when_their_parts_are():
    names = ["mace:1-aa", f"mace:1-{CONVERTED}", "mace:1-bb", "mace:2-aa"]
    one, converted, other, another = (combined("x", [n, "toy:0"]) for n in names)
    assert same_model(one, converted)
    assert not same_model(one, other)
    assert not same_model(converted, another)
    assert "-" not in combined("x", ["toy:0", "toy:1"])

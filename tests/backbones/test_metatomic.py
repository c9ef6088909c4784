"""What is metatomic's own: outputs by name, and both forces of one evaluation."""

# no postponed annotations: TorchScript reads those of the toy model

import copy
import warnings
from typing import Dict, List, Optional  # noqa: UP035

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.lj import LennardJones
from ase.calculators.mixing import SumCalculator
from builders import rattled, salt
from closeness import NETWORK, close

from uqcalc import ForceDelta, MaxForce, Policy, ReliableCalculator, Threshold, tap
from uqcalc.errors import BackboneError
from uqcalc.testing import check_backbone, contract_frames


pytest.importorskip("metatomic.torch")
pytest.importorskip("metatomic_ase")
from metatensor.torch import Labels, TensorBlock, TensorMap
from metatomic.torch import (
    AtomisticModel,
    ModelCapabilities,
    ModelMetadata,
    ModelOutput,
    NeighborListOptions,
    System,
)
from metatomic_ase import MetatomicCalculator


FRAMES = contract_frames()
for name in ("molecule", "atom"):
    # without a volume the calculator's stress is infinite, and compares with nothing
    FRAMES[name].center(vacuum=4.0)
WANTED = ["energy", "forces"]
CUTOFF = 4.0


class Toy(torch.nn.Module):
    """Gaussians of distances, summed over neighbours, into heads of all kinds.

    Features leave it last atom first: what orders outputs are their labels.
    """

    def __init__(self, seed: int = 0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.hidden = torch.nn.Linear(4, 5).double()
            self.last = torch.nn.Linear(5, 1).double()
            self.force_head = torch.nn.Linear(4, 1).double()
        self.direct = False

    def requested_neighbor_lists(self) -> List[NeighborListOptions]:  # noqa: UP006
        return [NeighborListOptions(cutoff=4.0, full_list=True, strict=True)]

    def heads(self, system: System) -> List[torch.Tensor]:  # noqa: UP006
        """Return features, energy, direct forces and direct stress."""
        pairs = system.get_neighbor_list(self.requested_neighbor_lists()[0])
        arrows = pairs.values.squeeze(-1)
        lengths = (arrows**2).sum(-1).sqrt()
        first = pairs.samples.column("first_atom").to(torch.long)
        second = pairs.samples.column("second_atom").to(torch.long)
        centres = torch.linspace(0.5, 3.0, 4, dtype=arrows.dtype)
        fades = 0.5 * (1 + torch.cos(torch.pi * (lengths / 4.0).clamp(max=1.0)))
        seen = torch.exp(-((lengths.unsqueeze(-1) - centres) ** 2))
        weight = fades * system.types[second].to(arrows.dtype) / 8.0
        seen = seen * weight.unsqueeze(-1)
        summed = torch.zeros(len(system), 4, dtype=arrows.dtype)
        own = torch.tanh(self.hidden(summed.index_add(0, first, seen)))
        answers = [own, self.last(own).sum().reshape(1, 1)]
        if self.direct:
            pushes = self.force_head(seen) * arrows
            force = torch.zeros(len(system), 3, dtype=arrows.dtype)
            answers.append(force.index_add(0, first, pushes).unsqueeze(-1))
            answers.append((arrows.T @ pushes).reshape(1, 3, 3, 1))
        return answers

    def forward(
        self,
        systems: List[System],  # noqa: UP006
        outputs: Dict[str, ModelOutput],  # noqa: UP006
        selected_atoms: Optional[Labels] = None,  # noqa: UP045
    ) -> Dict[str, TensorMap]:  # noqa: UP006
        self.direct = False
        for name in outputs:
            self.direct = self.direct or name.startswith("non_conservative")
        answers = [self.heads(system) for system in systems]
        labels: List[List[int]] = []  # noqa: UP006
        for index, system in enumerate(systems):
            for atom in range(len(system)):
                labels.append([index, atom])
        rows = torch.tensor(labels, dtype=torch.int32)
        numbers = torch.arange(len(systems), dtype=torch.int32).reshape(-1, 1)
        xyz = torch.arange(3).reshape(-1, 1)
        results: Dict[str, TensorMap] = {}  # noqa: UP006
        for name in outputs:
            which, samples = 0, Labels(["system", "atom"], rows.flip(0))
            components = [Labels(["xyz"], xyz)]
            if name.startswith("energy"):
                which, samples = 1, Labels(["system"], numbers)
            elif name.startswith("non_conservative_force"):
                which, samples = 2, Labels(["system", "atom"], rows)
            elif name.startswith("non_conservative_stress"):
                which, samples = 3, Labels(["system"], numbers)
                components = [Labels(["xyz_1"], xyz), Labels(["xyz_2"], xyz)]
            values = torch.cat([answer[which] for answer in answers])
            if which < 2:
                components = components[:0]
            if which == 0:
                values = values.flip(0)
            width = torch.arange(values.shape[-1]).reshape(-1, 1)
            block = TensorBlock(values, samples, components, Labels(["p"], width))
            results[name] = TensorMap(Labels(["_"], torch.tensor([[0]])), [block])
        return results


ENERGY = {"energy": ModelOutput(unit="eV", sample_kind="system")}
FEATURE = {"feature": ModelOutput(unit="", sample_kind="atom")}
FORCE = {"non_conservative_force": ModelOutput(unit="eV/A", sample_kind="atom")}
STRESS = {"non_conservative_stress": ModelOutput(unit="eV/A^3", sample_kind="system")}
EVERYTHING = ENERGY | FEATURE | FORCE | STRESS


def model(outputs=EVERYTHING, *, seed=0, kind=Toy):
    capabilities = ModelCapabilities(
        outputs=outputs,
        atomic_types=[1, 6, 8, 11, 17],
        interaction_range=CUTOFF,
        length_unit="angstrom",
        supported_devices=["cpu"],
        dtype="float64",
    )
    return AtomisticModel(kind(seed).eval(), ModelMetadata(), capabilities)


def metatomic(outputs=EVERYTHING, *, seed=0, **options):
    # without a skin: lists that remember the last geometry sum in another order
    return MetatomicCalculator(model(outputs, seed=seed), neighbor_skin=0.0, **options)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    path = tmp_path_factory.mktemp("metatomic") / "toy.pt"
    model().save(path)
    return path


def evaluations(calculator):
    """Count from outside how often the network itself runs."""
    counted = []
    network = calculator.model().module
    network.register_forward_hook(lambda *_: counted.append(1))
    return counted


@pytest.mark.parametrize("mode", [False, True, "forces"])
def test_contract(mode):
    check_backbone(lambda: metatomic(non_conservative=mode), FRAMES)


def test_contract_of_an_exported_model(exported):
    check_backbone(lambda: MetatomicCalculator(exported), FRAMES, exact=False)


def test_contract_without_direct_heads():
    check_backbone(lambda: metatomic(ENERGY | FEATURE), FRAMES)
    assert tap(metatomic(ENERGY | FEATURE)).provides == {
        "features",
        "energy",
        "forces",
        "conservative_forces",
        "stress",
        "conservative_stress",
    }


def test_contract_in_a_sum():
    check_backbone(
        lambda: SumCalculator([metatomic(), LennardJones(sigma=1.5, rc=4.0)]),
        {"salt": FRAMES["crystal"]},
    )


class TestOneEvaluation:
    @pytest.mark.parametrize("atoms", [rattled(), salt()], ids=["molecule", "crystal"])
    def test_gives_both_forces_and_features(self, atoms):
        calculator = metatomic()
        counted = evaluations(calculator)
        backbone = tap(calculator)
        got = backbone(atoms, [*WANTED, *backbone.on_demand])
        assert len(counted) == 1
        named = {
            "feature": ModelOutput(sample_kind="atom"),
            "non_conservative_force": ModelOutput(unit="eV/A", sample_kind="atom"),
        }
        asked = metatomic(additional_outputs=named)
        asked.calculate(atoms, WANTED, [])
        theirs = asked.additional_outputs["feature"].block().values
        close(got.features, theirs.flip(0), NETWORK)
        theirs = asked.additional_outputs["non_conservative_force"].block().values
        close(got.direct_forces, theirs.squeeze(-1), NETWORK)
        close(got.conservative_forces, asked.results["forces"], NETWORK)

    def test_stress_is_in_the_order_of_ase(self):
        backbone = tap(metatomic())
        got = backbone(salt(), [*WANTED, *backbone.on_demand]).direct_stress
        bare = metatomic(non_conservative="stress")
        bare.calculate(salt(), ["stress"], [])
        close(got, bare.results["stress"], NETWORK)
        assert np.ptp(got.numpy()[3:]) > 0

    def test_stress_is_not_asked_for_where_there_is_no_cell(self):
        backbone = tap(metatomic())
        got = backbone(rattled(), [*WANTED, *backbone.on_demand])
        assert got.direct_stress is None
        assert got.conservative_stress is None

    def test_runs_force_delta_and_stress_in_one_pass(self):
        atoms = salt()
        calculator = metatomic()
        counted = evaluations(calculator)
        atoms.calc = ReliableCalculator(
            calculator,
            signals=[ForceDelta(), MaxForce()],
            policy=Policy([Threshold("max_force", suspect=10.0, unreliable=20.0)]),
        )
        for step in range(3):
            atoms.get_forces()
            atoms.get_potential_energy()
            atoms.get_stress()
            assert len(counted) == atoms.calc.backbone.passes == step + 1
            atoms.rattle(0.01, seed=step)
        assert atoms.calc.results["force_delta"] > 0
        assert atoms.calc.results["stress_delta"] > 0

    def test_force_delta_keeps_the_net_force_of_a_head_that_keeps_it(self):
        atoms = rattled()
        atoms.center(vacuum=4.0)
        got = tap(metatomic())(atoms, [*WANTED, "direct_forces"])
        apart = got.direct_forces.numpy() - got.conservative_forces
        assert np.abs(apart.sum(axis=0)).max() > 1e-3
        expected = np.sqrt(np.sum(apart**2) / (3 * len(atoms)))
        assert float(ForceDelta()(got).risk) == pytest.approx(expected, rel=1e-9)
        assert float(ForceDelta(projection=True)(got).risk) < (1 - 1e-4) * expected

    def test_heads_that_nobody_wants_do_not_run(self):
        calculator = metatomic()
        head = calculator.model().module.force_head
        head.register_forward_hook(lambda *_: pytest.fail("ran"))
        got = tap(calculator)(rattled(), WANTED)
        assert got.direct_forces is None

    def test_many_frames_are_one_pass(self):
        backbone = tap(metatomic())
        frames = [salt(), rattled(), rattled("H2O")]
        backbone.predict_many(frames, [*WANTED, "direct_forces"])
        assert backbone.passes == 1


class TestDirectCalculator:
    def test_forces_are_direct_and_none_are_conservative(self):
        backbone = tap(metatomic(non_conservative=True))
        assert not backbone.conservative
        absent = {"conservative_forces", "conservative_stress"}
        assert not backbone.provides & absent
        assert not backbone.on_demand
        got = backbone(salt(), WANTED)
        assert got.conservative_forces is None
        assert got.conservative_stress is None
        direct = got.direct_forces.numpy()
        close(got.forces, direct - direct.mean(0), NETWORK, of=direct)
        with pytest.raises(ValueError, match="'conservative_forces'"):
            ReliableCalculator(
                metatomic(non_conservative=True),
                signals=[ForceDelta()],
                policy=Policy([Threshold("force_delta", 1.0, 2.0)]),
            )

    def test_stress_may_be_direct_alone(self):
        backbone = tap(metatomic(non_conservative="stress"))
        assert backbone.conservative
        assert "conservative_stress" not in backbone.provides
        got = backbone(salt(), [*WANTED, "stress"])
        close(got.direct_stress, got.results["stress"], NETWORK)
        assert np.array_equal(got.conservative_forces, got.forces)


class TestNames:
    def test_of_older_models_end_in_an_s(self):
        old = {f"{name}s": given for name, given in (FEATURE | FORCE).items()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that they are old
            older = model(ENERGY | old)
        got = tap(MetatomicCalculator(older))(rattled(), [*WANTED, "direct_forces"])
        new = tap(metatomic())(rattled(), [*WANTED, "direct_forces"])
        close(got.features, new.features, NETWORK)
        close(got.direct_forces, new.direct_forces, NETWORK)

    def test_of_variants(self):
        """Both forces are of one level of theory; features may be common to all."""
        outputs = {f"energy/{v}": ENERGY["energy"] for v in ("PBE", "SCAN")}
        force = {"non_conservative_force/PBE": FORCE["non_conservative_force"]}
        give = ENERGY | outputs | force | FEATURE
        pbe = tap(metatomic(give, variants={"energy": "PBE"}))
        scan = tap(metatomic(give, variants={"energy": "SCAN"}))
        plain = tap(metatomic(give))
        assert "direct_forces" in pbe.provides
        assert "direct_forces" not in scan.provides | plain.provides
        assert len({b.fingerprint for b in (pbe, scan, plain)}) == 3
        scan(rattled(), WANTED)


class TestUsersOwnOutputs:
    def test_stay_as_they_are(self):
        alone = {"feature": ModelOutput(sample_kind="atom")}
        calculator = metatomic(additional_outputs=alone)
        backbone = tap(calculator)
        backbone(rattled(), [*WANTED, *backbone.on_demand])
        assert set(calculator.additional_outputs) == {"feature"}
        plain = metatomic()
        tap(plain)(rattled(), WANTED)
        assert plain.additional_outputs == {}

    def test_are_refused_where_they_are_at_odds(self):
        otherwise = {
            "non_conservative_force": ModelOutput(unit="kJ/mol/nm", sample_kind="atom")
        }
        with pytest.raises(BackboneError, match="got unit='kJ/mol/nm'"):
            tap(metatomic(additional_outputs=otherwise))


@pytest.mark.parametrize(
    ("outputs", "words"),
    [
        (ENERGY | FORCE, r"'feature' of each atom, got \['energy', 'non"),
        (FEATURE, "must have an energy"),
        (
            ENERGY | {"feature": ModelOutput(sample_kind="system")},
            "got 'feature' of each system",
        ),
    ],
)
def test_models_without_what_is_needed_are_refused(outputs, words):
    with pytest.raises(BackboneError, match=words):
        tap(metatomic(outputs))


def test_unknown_element_is_refused_before_any_pass():
    backbone = tap(metatomic())
    with pytest.raises(BackboneError, match=r"metatomic model, got \['Po'\]"):
        backbone(Atoms("Po"), WANTED)
    assert backbone.passes == 0


def test_model_is_put_back_after_a_failure(monkeypatch):
    calculator = metatomic()
    own = calculator.model()

    def fail(*args, **options):
        raise MemoryError

    backbone = tap(calculator)
    with monkeypatch.context() as patch:
        patch.setattr(own.module, "forward", fail)
        with pytest.raises(MemoryError):
            backbone(rattled(), WANTED)
    assert calculator.model() is own


class Charged(Toy):
    """Says that it reads charge, spin and momenta."""

    def requested_inputs(self) -> Dict[str, ModelOutput]:  # noqa: UP006
        return {
            "charge": ModelOutput(unit="e", sample_kind="system"),
            "spin_multiplicity": ModelOutput(sample_kind="system"),
            "momentum": ModelOutput(sample_kind="atom"),
        }


class TestExtraState:
    @pytest.fixture
    def charged(self):
        return tap(MetatomicCalculator(model(kind=Charged)))

    @pytest.mark.parametrize("key", ["charge", "spin", "spin_multiplicity"])
    def test_is_what_the_model_reads(self, charged, key):
        atoms = rattled()
        before = charged.extra_state(atoms)
        atoms.info["note"] = "step 12"
        assert charged.extra_state(atoms) == before
        atoms.info[key] = 2
        assert charged.extra_state(atoms) != before

    def test_a_change_of_it_is_evaluated(self, charged):
        atoms = rattled()
        atoms.calc = ReliableCalculator(
            charged,
            signals=[MaxForce()],
            policy=Policy([Threshold("max_force", suspect=10.0, unreliable=20.0)]),
        )
        changes = (
            lambda: None,
            lambda: atoms.info.update(charge=1),
            lambda: atoms.set_momenta(np.ones((len(atoms), 3))),
            lambda: atoms.info.update(note=1),
        )
        passes = []
        for change in changes:
            change()
            atoms.get_forces()
            passes.append(charged.passes)
        assert passes == [1, 2, 3, 3]

    def test_is_nothing_for_most_models(self):
        atoms = rattled()
        atoms.info["charge"] = 1
        assert tap(metatomic()).extra_state(atoms) == {}


class TestFingerprint:
    def test_is_of_the_weights(self, exported):
        names = {
            tap(metatomic()).fingerprint,
            tap(metatomic(non_conservative=True)).fingerprint,
            tap(MetatomicCalculator(exported)).fingerprint,
        }
        assert len(names) == 1
        assert tap(metatomic(seed=1)).fingerprint not in names

    def test_of_a_copy_is_the_same(self):
        calculator = MetatomicCalculator(model())
        before = tap(calculator).fingerprint
        with torch.no_grad():
            next(calculator.model().parameters()).view(-1)[0] += 1e-3
        assert tap(calculator).fingerprint != before
        assert tap(MetatomicCalculator(copy.deepcopy(model()))).fingerprint == before

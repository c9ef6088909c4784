"""Checkpoints in the layout of the released PROBE code, imported without pickle."""

import os
import pickle

import numpy as np
import pytest
import torch
from builders import rattled
from closeness import NETWORK, close
from probe.toys import ToyBackbone, dense_network

from uqcalc import ReliableCalculator
from uqcalc.errors import ProbeError
from uqcalc.evaluation.cardinfo import card_info
from uqcalc.probe.network import ProbeNetwork, Shape
from uqcalc.probe.probe import Probe


WIDTH = 6
ENERGIES = {"H": -0.7, "C": -1.3, "O": 2.1}  # eV, any value


def official(*, charges=False, width=WIDTH, **changes):
    """A file as the released training script saves it."""
    with torch.random.fork_rng():
        torch.manual_seed(11)
        state = ProbeNetwork(Shape(width, charges=charges)).state_dict()
    rng = np.random.default_rng(0)
    metrics = {
        "confusion": rng.integers(9, size=(2, 2)),
        "probabilities": rng.random((4, 2), dtype=np.float32),
        "labels": np.array([True, False]),
        "accuracy": np.float64(0.7),
        "count": np.int64(4),
        "loss": 0.6,
    }
    return {
        "model_state_dict": state,
        "epoch": 12,
        "val_loss": np.float32(0.6),
        "val_metrics": metrics,
        "error_bins": [0.0, 0.0712],
    } | changes


@pytest.mark.parametrize("charges", [False, True])
def test_same_logits_as_the_published_network(charges, tmp_path):
    content = official(charges=charges)
    torch.save(content, tmp_path / "best.pt")
    backbone = ToyBackbone(WIDTH, charges=charges)
    energies = ENERGIES if charges else None
    probe = Probe.from_official(
        tmp_path / "best.pt", backbone, atomic_energies=energies
    )
    assert probe.card.boundary == 0.0712
    assert (probe.card.target, probe.card.unit) == ("energy", "eV")
    assert probe.card.charges is charges
    assert ("elements H, C, O" if charges else "not stated") in str(probe.card)
    frames = [rattled(name) for name in ("H2O", "CH3OH", "C2H6")]
    predictions = [backbone(frame, ["energy", "forces"]) for frame in frames]
    state = {k: v.double() for k, v in content["model_state_dict"].items()}
    reliability, importance = probe(predictions, importance=True)
    pieces = importance.split([len(frame) for frame in frames])
    for i, p in enumerate(predictions):
        atomic = sum((energies or {}).get(s, 0.0) for s in frames[i].symbols)
        scalars = torch.tensor([p.energy - atomic, len(p.numbers)]).double()
        extra = p.charges if charges else None
        logits, received = dense_network(state, p.features, scalars, extra)
        close(reliability[i], logits.softmax(0)[0], NETWORK)
        close(pieces[i], received, NETWORK)


def test_imported_probe_runs_and_keeps(tmp_path):
    torch.save(official(), tmp_path / "best.pt")
    backbone = ToyBackbone(WIDTH)
    probe = Probe.from_official(tmp_path / "best.pt", backbone)
    atoms = rattled("CH3OH")
    calculator = ReliableCalculator(backbone, probe.save(tmp_path / "mine.probe"))
    risk = calculator.assess(atoms).readings[0].risk
    prediction = ToyBackbone(WIDTH)(atoms, ["energy", "forces"])
    close(risk, 1 - probe([prediction])[0].item(), NETWORK, of=1.0)


def test_charge_checkpoint_needs_a_backbone_with_charges(tmp_path):
    torch.save(official(charges=True), tmp_path / "best.pt")
    backbone = ToyBackbone(WIDTH)
    probe = Probe.from_official(
        tmp_path / "best.pt", backbone, atomic_energies=ENERGIES
    )
    with pytest.raises(ValueError, match=r"'probe' needs \['charges'\]; toy provides"):
        ReliableCalculator(backbone, probe)
    with pytest.raises(ProbeError, match="must carry charges"):
        probe([backbone(rattled(), ["energy", "forces"])])


@pytest.mark.parametrize("heads", [8, 64])
def test_number_of_heads_is_given_by_the_user(heads, tmp_path):
    content = official()
    torch.save(content, tmp_path / "best.pt")
    backbone = ToyBackbone(WIDTH)
    probe = Probe.from_official(tmp_path / "best.pt", backbone, heads=heads)
    rows = dict(card_info(probe.card).rows)
    assert f"{heads} attention heads" in rows["description"]
    probe = Probe.load(probe.save(tmp_path / "mine.probe"))
    prediction = backbone(rattled(), ["energy", "forces"])
    state = {k: v.double() for k, v in content["model_state_dict"].items()}
    scalars = torch.tensor([prediction.energy, 6.0]).double()
    logits, received = dense_network(state, prediction.features, scalars, heads=heads)
    reliability, importance = probe([prediction], importance=True)
    assert reliability.item() == pytest.approx(logits.softmax(0)[0].item(), rel=1e-5)
    np.testing.assert_allclose(importance, received, rtol=1e-5)


@pytest.mark.parametrize("heads", [0, -8, 7, 8.0, True])
def test_heads_that_do_not_divide_the_width_are_refused(heads, tmp_path):
    torch.save(official(), tmp_path / "best.pt")
    with pytest.raises(ProbeError, match="heads must be a whole number that divides"):
        Probe.from_official(tmp_path / "best.pt", ToyBackbone(WIDTH), heads=heads)


class TestAtomicEnergies:
    def test_checkpoint_with_charges_needs_them(self, tmp_path):
        torch.save(official(charges=True), tmp_path / "best.pt")
        with pytest.raises(ProbeError, match=r"atomic_energies=.* must be given"):
            Probe.from_official(tmp_path / "best.pt", ToyBackbone(WIDTH, charges=True))

    @pytest.mark.parametrize(
        ("energies", "message"),
        [
            ({"Q": 1.0}, "keys, got 'Q'"),
            ({0: 1.0}, "keys, got 0"),
            ({1: float("nan")}, "of H must be a finite number in eV, got nan"),
            ({1: "-13.6"}, "of H must be a finite number in eV, got '-13.6'"),
        ],
    )
    def test_invalid_atomic_energies_are_named(self, energies, message, tmp_path):
        torch.save(official(), tmp_path / "best.pt")
        with pytest.raises(ProbeError, match=message):
            Probe.from_official(
                tmp_path / "best.pt", ToyBackbone(WIDTH), atomic_energies=energies
            )

    def test_an_element_without_one_has_no_probability(self, tmp_path):
        torch.save(official(), tmp_path / "best.pt")
        backbone = ToyBackbone(WIDTH)
        probe = Probe.from_official(
            tmp_path / "best.pt", backbone, atomic_energies={1: -1.0, 8: 0.0}
        )
        assert probe.unseen_elements(rattled("CH3OH").numbers) == ["C"]
        wet = backbone(rattled("H2O"), ["energy", "forces"])
        other = backbone(rattled("CH3OH"), ["energy", "forces"])
        found = probe.reliability([wet, other])
        assert found.isnan().tolist() == [False, True]


class Payload:
    """The content of an attacker's checkpoint."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (self.target,)


def test_code_in_a_checkpoint_does_not_run(tmp_path):
    target = tmp_path / "owned"
    torch.save(official(note=Payload(str(target))), tmp_path / "evil.pt")
    with pytest.raises(ProbeError, match=r"posix\.mkdir|nt\.mkdir") as caught:
        Probe.from_official(tmp_path / "evil.pt", ToyBackbone(WIDTH))
    assert "weights_only" not in str(caught.value)  # no advice to run it
    assert not target.exists()
    # the payload works: an unsafe reader runs it
    torch.load(tmp_path / "evil.pt", weights_only=False)
    assert target.exists()


def test_array_of_objects_is_refused(tmp_path):
    target = tmp_path / "owned"
    array = np.array([Payload(str(target))], dtype=object)
    torch.save(official(val_metrics={"a": array}), tmp_path / "evil.pt")
    with pytest.raises(ProbeError, match="tensors and arrays only"):
        Probe.from_official(tmp_path / "evil.pt", ToyBackbone(WIDTH))
    assert not target.exists()


def test_other_files_are_not_checkpoints(tmp_path):
    path = tmp_path / "best.pt"
    with pytest.raises(ProbeError, match="no such file"):
        Probe.from_official(path, ToyBackbone(WIDTH))
    torch.save(official(), path)
    whole = path.read_bytes()
    for content in (b"", b"hello", whole[: len(whole) // 2], pickle.dumps({"a": 1})):
        path.write_bytes(content)
        with pytest.raises(ProbeError, match="must be a complete checkpoint"):
            Probe.from_official(path, ToyBackbone(WIDTH))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "dictionary, got list"),
        ({"weights": torch.zeros(2)}, r"model_state_dict .* got \['weights'\]"),
        (official(error_bins=[0.0]), "error_bins"),
        (official(error_bins=[0.0, float("nan")]), "boundary .* got nan eV"),
        (official(model_state_dict={"proj.bias": torch.zeros(2)}), "atom_encoder"),
        (official(width=9), "got 9 in .* and 6 from toy:0"),
    ],
)
def test_checkpoints_that_do_not_fit(content, message, tmp_path):
    torch.save(content, tmp_path / "best.pt")
    with pytest.raises(ProbeError, match=message):
        Probe.from_official(tmp_path / "best.pt", ToyBackbone(WIDTH))


def test_another_network_is_refused(tmp_path):
    content = official()
    content["model_state_dict"].pop("classifier.7.bias")
    torch.save(content, tmp_path / "best.pt")
    with pytest.raises(ProbeError, match=r"(?s)published network.*classifier\.7\.bias"):
        Probe.from_official(tmp_path / "best.pt", ToyBackbone(WIDTH))


def test_arrays_written_under_numpy_1_are_read(tmp_path):
    """In numpy 1 the functions that rebuild arrays are in ``numpy.core``."""
    torch.save(official(), tmp_path / "new.pt")
    content = (tmp_path / "new.pt").read_bytes()
    if b"numpy._core" not in content:
        pytest.skip("this numpy writes the old name itself")
    import zipfile

    with (
        zipfile.ZipFile(tmp_path / "new.pt") as new,
        zipfile.ZipFile(tmp_path / "old.pt", "w") as old,
    ):
        for entry in new.infolist():
            raw = new.read(entry)
            if entry.filename.endswith("data.pkl"):
                raw = raw.replace(b"cnumpy._core.", b"cnumpy.core.")
            old.writestr(entry.filename, raw)
    probe = Probe.from_official(tmp_path / "old.pt", ToyBackbone(WIDTH))
    assert probe.card.training == {"epoch": 12}

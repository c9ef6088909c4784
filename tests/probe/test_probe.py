"""A probe file: bitwise round trip, no code in it, refused for another backbone."""

import copy
import json
import math
import pickle

import numpy as np
import pytest
import safetensors.torch
import torch
from builders import rattled, tiny_probe
from closeness import FLOAT32, NETWORK, close
from probe.toys import ToyBackbone, random_prediction
from safetensors import safe_open

from uqcalc import ReliableCalculator
from uqcalc.errors import FileWarning, ProbeError
from uqcalc.fitting.recipe import Recipe
from uqcalc.probe import probe as checkpoint
from uqcalc.probe.calibration import Calibration
from uqcalc.probe.card import Card
from uqcalc.probe.network import ProbeNetwork
from uqcalc.probe.probe import FILE, Probe
from uqcalc.records import Level


KEY = "uqcalc_probe"


@pytest.fixture
def backbone():
    return ToyBackbone(6)


@pytest.fixture
def probe(backbone):
    """A probe whose statistics all differ."""
    probe = tiny_probe(backbone, atom_energies={"1": -1.5, "6": -7.25})
    generator = torch.Generator().manual_seed(4)
    for buffer in probe.statistics.buffers():
        buffer += 0.1 * torch.rand(buffer.shape, generator=generator)
    return probe


@pytest.fixture
def saved(probe, tmp_path):
    return probe.save(tmp_path / "my.probe")


def rewrite(path, change):
    """Change the card of the file at ``path`` by hand, under a checksum that fits."""
    tensors, card = FILE.read(path)
    change(card)
    FILE.write(path, tensors, card)


def without_checksum(path):
    with safe_open(path, framework="pt") as file:
        metadata = {KEY: file.metadata()[KEY]}
    tensors = safetensors.torch.load_file(path)
    safetensors.torch.save_file(tensors, path, metadata=metadata)


def raw_probe(backbone):
    shape = Recipe.published().shape(backbone.feature_dim, charges=False)
    card = tiny_probe(backbone).card.to_dict()
    card |= {"architecture": "probe-2026", "shape": shape.to_dict()}
    return Probe(Card.from_dict(card), ProbeNetwork(shape), None)


@pytest.mark.parametrize("architecture", ["standard", "probe-2026"])
def test_round_trip_is_bitwise(architecture, backbone, probe, tmp_path):
    original = probe if architecture == "standard" else raw_probe(backbone)
    loaded = Probe.load(original.save(tmp_path / "my.probe"))
    assert loaded.card == original.card
    assert (loaded.statistics is None) == (architecture == "probe-2026")
    theirs = original.network.state_dict()
    for name, tensor in loaded.network.state_dict().items():
        assert torch.equal(tensor, theirs[name])
    predictions = [random_prediction(n, 6, seed=n) for n in (3, 1, 8)]
    for ours, bare in zip(
        loaded(predictions, importance=True),
        original(predictions, importance=True),
        strict=True,
    ):
        assert torch.equal(ours, bare)


def test_file_holds_numbers_and_json_only(saved, probe, monkeypatch):
    def refuse(*args, **kwargs):
        pytest.fail("a probe file must be read without pickle")

    monkeypatch.setattr(pickle, "load", refuse)
    monkeypatch.setattr(pickle, "Unpickler", refuse)
    monkeypatch.setattr(torch, "load", refuse)
    assert Probe.load(saved).card == probe.card
    tensors = safetensors.torch.load_file(saved)
    parts = {name.split(".")[0] for name in tensors}
    assert parts == {"network", "statistics", "seen"}
    with safe_open(saved, framework="pt") as file:
        card = json.loads(file.metadata()[KEY])
    assert (card["unit"], card["boundary"]) == ("eV/Å", 0.1)


def test_probe_is_float32_with_any_default_dtype(saved, backbone):
    prediction = random_prediction(5, 6)
    expected, _ = Probe.load(saved)([prediction])
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # as MACE calculators may leave it
    try:
        loaded, raw = Probe.load(saved), raw_probe(backbone)
        assert loaded.network.proj.weight.dtype == torch.float32
        ours, _ = loaded([prediction])
        assert raw([prediction])[0].isfinite().all()
    finally:
        torch.set_default_dtype(before)
    assert torch.equal(ours, expected)


def test_a_file_of_the_first_schema_reads_as_it_did(backbone, tmp_path):
    """Entries of the release that wrote such files; inputs by their formulas."""
    energies = {1: -1.5, 6: -7.25, 8: -20.0}
    probe = tiny_probe(
        backbone, bias=0.3, atom_energies={str(z): e for z, e in energies.items()}
    )
    path = probe.save(tmp_path / "old.probe")

    def as_then(card):
        for entry in (
            "atom_boundary", "atom_calibration", "joined", "offsets", "promise", "scope"
        ):  # fmt: skip
            del card[entry]
        card.update(schema=1, calibration=[1.0, 0.3])

    rewrite(path, as_then)
    without_checksum(path)
    with pytest.warns(FileWarning, match=r"old\.probe has no checksum"):
        loaded = Probe.load(path)
    predictions = [random_prediction(n, 6, seed=n) for n in (3, 1, 8)]
    reliability, importance = loaded(predictions, importance=True)
    network = copy.deepcopy(probe.network).double().eval()
    shares = importance.split([3, 1, 8])
    for p, found, received in zip(predictions, reliability, shares, strict=True):
        count, rows = len(p.numbers), p.features.double()
        energy = p.energy - sum(energies[z] for z in p.numbers)
        largest = np.linalg.norm(p.forces, axis=1).max()
        rms = np.sqrt(np.mean(p.forces**2))
        distances = (rows**2).mean(dim=1)  # nothing was learnt: centre 0, scale 1
        positive = [count, rms + 1e-3, largest + 1e-3]
        positive += [distances.mean() + 1e-6, distances.max() + 1e-6]
        scalars = torch.tensor([[energy / count, *np.log(positive)]])
        output = network(rows, [count], scalars, explain=True)
        margin = output.logits[0, 0] - output.logits[0, 1]
        close(found, (margin + 0.3).sigmoid(), NETWORK)
        close(received, output.importance, NETWORK)
    assert loaded.card.calibration == Calibration(1.0, 0.3)
    reading = loaded.read(predictions)
    assert reading.atoms is reading.parts is reading.novelty is None
    again = Probe.load(loaded.save(tmp_path / "new.probe"))
    for ours, theirs in zip(
        again(predictions, importance=True), (reliability, importance), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_truncated_file_is_refused(saved):
    whole = saved.read_bytes()
    for keep in (0, 4, 200, len(whole) // 2, len(whole) - 1):
        saved.write_bytes(whole[:keep])
        with pytest.raises(
            ProbeError, match=r"complete safetensors file, got .*my\.probe"
        ):
            Probe.load(saved)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(ProbeError, match=r"existing file, got .*none\.probe"):
        Probe.load(tmp_path / "none.probe")
    with pytest.raises(ProbeError, match="existing file"):
        Probe.load(tmp_path)
    other = tmp_path / "model.safetensors"
    safetensors.torch.save_file({"weight": torch.zeros(3)}, other)
    with pytest.raises(ProbeError, match="without a card"):
        Probe.load(other)
    torch.save({"weight": torch.zeros(3)}, tmp_path / "model.pt")
    with pytest.raises(ProbeError, match="from_official"):
        Probe.load(tmp_path / "model.pt")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"schema": 99, "new": 1}, "at most 9 .* got 99; upgrade"),
        ({"schema": 2, "architecture": "joined"}, "at least 3, got 2.* fit the probe"),
        ({"unit": "kcal/mol"}, "in eV/Å, got 'kcal/mol'"),
        ({"unit": None}, "in eV/Å, got None"),
        ({"target": "energy"}, "energy must be in eV, got 'eV/Å'"),
        ({"target": "virial"}, "target must be .* got 'virial'"),
        ({"architecture": "probe-2031"}, "got 'probe-2031'"),
        ({"architecture": "probe-2026"}, "input statistics"),
        ({"boundary": math.nan}, "boundary.* got nan"),
        ({"boundary": -0.1}, "boundary .* got -0.1 eV/Å"),
        ({"suspect": 0.3}, "cutoffs .* suspect=0.3"),
        ({"colour": "red"}, "must have the entries .* got .*colour"),
    ],
)
def test_cards_with_other_meanings_are_refused(saved, entries, message):
    rewrite(saved, lambda card: card.update(entries))
    with pytest.raises(ProbeError, match=message):
        Probe.load(saved)


@pytest.mark.parametrize("entry", ["boundary", "elements", "sizes", "calibration"])
def test_card_with_a_missing_entry_is_refused(saved, entry):
    rewrite(saved, lambda card: card.pop(entry))
    with pytest.raises(ProbeError, match=f"must have the entries .*{entry}"):
        Probe.load(saved)


def test_weights_that_do_not_fit_the_card_are_refused(saved):
    rewrite(saved, lambda card: card["shape"].update(features=7))
    with pytest.raises(ProbeError, match="fit the shape on its card"):
        Probe.load(saved)


def test_failed_save_leaves_the_old_file(saved, backbone, monkeypatch):
    old = saved.read_bytes()

    def full_disk(path, content):
        path.write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.Path, "write_bytes", full_disk)
    with pytest.raises(OSError, match="No space left"):
        tiny_probe(backbone, seed=7).save(saved)
    assert saved.read_bytes() == old
    assert [p.name for p in saved.parent.iterdir()] == ["my.probe"]


def test_probe_of_another_backbone_is_refused(saved):
    wide = ToyBackbone(9)
    with pytest.raises(ProbeError, match=r"6 features \(toy:0\).* with 9 \(toy:0\)"):
        ReliableCalculator(wide, saved)
    other = ToyBackbone(6, identity="toy:1")
    with pytest.raises(ProbeError, match="probe for toy:0 and the backbone toy:1"):
        ReliableCalculator(other, saved)


def test_unseen_element_gives_nan(saved, backbone):
    atoms = rattled("CH3SH")
    atoms.calc = ReliableCalculator(backbone, saved)
    assessment = atoms.calc.assess(atoms)
    reading = assessment.reading("probe")
    assert math.isnan(reading.risk)
    assert "['S']" in reading.note
    assert math.isnan(atoms.calc.results["probe_reliability"])
    assert assessment.level is Level.UNRELIABLE
    water = rattled("H2O")
    assert math.isfinite(atoms.calc.assess(water).readings[0].risk)


@pytest.mark.parametrize("what", ["feature", "energy", "force", "overflow"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_broken_prediction_never_has_a_probability(probe, what, value):
    broken, whole = random_prediction(5, 6, seed=1), random_prediction(4, 6, seed=2)
    expected, _ = probe([whole])
    if what == "feature":
        broken.features[2, 3] = value
    elif what == "overflow":
        broken.features[2, 3] = 1e30
    elif what == "force":
        broken.forces[2, 1] = value
    else:
        object.__setattr__(broken, "energy", value)
    reliability, importance = probe([broken, whole], importance=True)
    assert reliability[0].isnan()
    close(reliability[1:], expected, NETWORK)
    close(importance[5:].sum(), 1.0, FLOAT32)


def test_batch_equals_singles(probe):
    predictions = [random_prediction(n, 6, seed=n) for n in (3, 1, 8, 8)]
    reliability, importance = probe(predictions, importance=True)
    for i, (prediction, received) in enumerate(
        zip(predictions, importance.split([3, 1, 8, 8]), strict=True)
    ):
        alone, its = probe([prediction], importance=True)
        close(alone[0], reliability[i], NETWORK)
        close(its, received, NETWORK)

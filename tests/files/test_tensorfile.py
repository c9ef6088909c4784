"""Files with a checksum: damage is refused, or does not change a result."""

import contextlib
import json
import math
import random

import pytest
import safetensors.torch
import torch
from builders import tiny_probe
from probe.toys import ToyBackbone, random_prediction

from uqcalc.distillation.card import FILE as HEAD, HeadCard
from uqcalc.distillation.head import DirectNetwork, DistilledHead
from uqcalc.errors import FileWarning, ModelError, ProbeError, RecordError, SignalError
from uqcalc.files.tensorfile import CHECKSUM, Kind, metadata_of
from uqcalc.probe.card import Card
from uqcalc.probe.network import Shape
from uqcalc.probe.probe import FILE as PROBE, Probe
from uqcalc.signals.card import FILE as SIGNAL, HeldOut, SignalCard
from uqcalc.signals.distance import LatentDistance, Mahalanobis
from uqcalc.signals.fitted import load_signal


FIXTURES = {"probe": "probe", "distilled head": "head", "fitted signal": "signal"}


@pytest.fixture
def probe(tmp_path):
    return tiny_probe(ToyBackbone(6)).save(tmp_path / "a.probe")


@pytest.fixture
def head(tmp_path):
    card = HeadCard(
        fingerprint="toy:0",
        features=4,
        vectors=0,
        cutoff=4.0,
        hidden=8,
        elements=[1, 6],
    )
    return DistilledHead(card, DirectNetwork(4, 0, cutoff=4.0, hidden=8)).save(
        tmp_path / "a.head"
    )


@pytest.fixture
def signal(tmp_path):
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(40, 3, generator=generator, dtype=torch.float64)
    distance = Mahalanobis.fit(torch.tensor([1, 6] * 20).numpy(), features)
    card = SignalCard(
        kind="latent_distance",
        fingerprint="toy:0",
        feature_dim=3,
        elements=[1, 6],
        risk="distance",
        settings={"kind": "x"},
    )
    card.settings.update(kind="mahalanobis", reduce="mean")
    risks = torch.tensor([1.0, math.nan, math.inf]).numpy()
    held_out = HeldOut(risks, torch.arange(3).numpy())
    return LatentDistance(card, distance, held_out).save(tmp_path / "a.signal")


def test_every_flipped_byte_is_refused_or_harmless(probe):
    """A flip in white space or in the order may be accepted; no result changes."""
    predictions = [random_prediction(n, 6, seed=n) for n in (3, 1, 8)]
    before = Probe.load(probe)
    expected = before(predictions, importance=True)
    whole = bytearray(probe.read_bytes())
    header = 8 + int.from_bytes(whole[:8], "little")
    draw = random.Random(5)
    places = draw.sample(range(header), 300) + draw.choices(
        range(header, len(whole)), k=300
    )
    passed = 0
    for place in places:
        flipped = bytearray(whole)
        flipped[place] ^= 1 << draw.randrange(8)
        probe.write_bytes(flipped)
        try:
            loaded = Probe.load(probe)
        except ProbeError:
            continue
        passed += 1
        assert loaded.card == before.card
        for ours, theirs in zip(
            loaded(predictions, importance=True), expected, strict=True
        ):
            assert torch.equal(ours, theirs)
    assert passed < 10


@pytest.mark.parametrize(
    ("kind", "load"),
    [
        (PROBE, Probe.load),
        (HEAD, DistilledHead.load),
        (SIGNAL, load_signal),
    ],
)
def test_an_edit_with_another_tool_is_refused(kind, load, request):
    """Weights, their type and the card; another tool writes no checksum."""
    path = request.getfixturevalue(FIXTURES[kind.name])
    load(path)
    tensors, metadata = safetensors.torch.load_file(path), metadata_of(path)
    name = max(tensors, key=lambda key: tensors[key].numel())

    def written(changes, card):
        safetensors.torch.save_file(tensors | changes, path, metadata=card)
        with pytest.raises(kind.error, match="checksum"):
            load(path)

    written({name: tensors[name] * 1.0001}, metadata)
    written({name: torch.full_like(tensors[name], 1e30)}, metadata)
    written({name: tensors[name].half()}, metadata)
    written({"more": torch.zeros(1)}, metadata)
    edited = json.dumps(json.loads(metadata[kind.key]) | {"uqcalc_version": "9"})
    written({}, metadata | {kind.key: edited})
    written({}, metadata | {CHECKSUM: "0" * 64})
    schema = {"schema": max(kind.checked_since, 2)}
    recent = json.dumps(json.loads(metadata[kind.key]) | schema)
    written({}, {kind.key: recent})  # removed from a file that must have it


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_refused_unless_they_may_be(value, tmp_path):
    kind = Kind(
        "thing", "k", RecordError, "make one", "mend it", 0, (".limit",), (".risks",)
    )
    path = tmp_path / "thing"
    wrong = torch.tensor([1.0, value])
    with pytest.raises(RecordError, match=r"be finite, got 1 of 2 in 'a\.weight'"):
        kind.write(path, {"a.weight": wrong}, {})
    assert not path.exists()
    kind.write(path, {"a.risks": wrong}, {})
    assert torch.equal(kind.read(path)[0]["a.risks"].isfinite(), wrong.isfinite())
    if value == math.inf:
        kind.write(path, {"a.limit": wrong}, {})
    else:
        with pytest.raises(RecordError, match=r"a\.limit"):
            kind.write(path, {"a.limit": wrong}, {})
    safetensors.torch.save_file({"w": wrong}, path, metadata={"k": "{}"})
    old = Kind("thing", "k", RecordError, "make one", "mend it", checked_since=1)
    with (
        pytest.warns(FileWarning, match="no checksum"),
        pytest.raises(RecordError, match="must be finite"),
    ):
        old.read(path)


_WRONG = (True, "x", None, -3, [1, "a"], {"a": []}, 1e400, [[[]]])


def read_probe_card(entries):
    card = Card.from_dict(entries)
    Shape.from_dict(card.shape)


@pytest.mark.parametrize(
    ("kind", "read"),
    [
        (PROBE, read_probe_card),
        (HEAD, HeadCard.from_dict),
        (SIGNAL, SignalCard.from_dict),
    ],
)
def test_every_entry_of_a_wrong_type_is_a_uqcalc_error(kind, read, request):
    """Each entry of a card, also nested: an error of uqcalc, or an allowed value."""
    path = request.getfixturevalue(FIXTURES[kind.name])
    card = kind.card(path)
    places = [(name,) for name in card]
    for name in ("shape", "calibration", "scope"):
        places += [(name, inner) for inner in card.get(name) or {}]
    for place in places:
        for wrong in _WRONG:
            changed = json.loads(json.dumps(card))
            inside = changed[place[0]] if len(place) == 2 else changed
            inside[place[-1]] = wrong
            with contextlib.suppress(kind.error):
                read(changed)  # no other exception
    with pytest.raises(kind.error, match=r"entry 'fingerprint' .*got .'no', 'text'"):
        read(card | {"fingerprint": ["no", "text"]})


@pytest.mark.parametrize("text", ["[]", "3", "{", "[" * 100_000, "null"])
def test_invalid_card_is_a_uqcalc_error(text, probe):
    tensors = safetensors.torch.load_file(probe)
    safetensors.torch.save_file(tensors, probe, metadata={PROBE.key: text})
    with pytest.raises(ProbeError, match="must be a complete safetensors file"):
        Probe.load(probe)


def test_damaged_file_is_replaced_only_by_its_own_kind(probe, signal):
    content = bytearray(probe.read_bytes())
    content[-1] ^= 1
    probe.write_bytes(content)
    with pytest.raises(ProbeError, match="checksum"):
        Probe.load(probe)
    with pytest.raises(SignalError, match="another kind of file"):
        SIGNAL.write(probe, {}, {})
    PROBE.write(probe, {}, {})
    with pytest.raises(ModelError, match="without a card"):
        HEAD.read(signal)

"""Cards of probes, heads and signals: one base, and files that do not change."""

import json
from importlib.resources import files

import pytest
import torch

from uqcalc.distillation.card import HeadCard
from uqcalc.errors import ModelError, ProbeError, SignalError
from uqcalc.files.tensorfile import metadata_of
from uqcalc.models.named import PROBE_FILES
from uqcalc.probe.card import Card
from uqcalc.probe.probe import Probe
from uqcalc.signals.card import SignalCard


# Cards as files of schema 1 have them.
HEAD = {
    "fingerprint": "toy:0",
    "features": 4,
    "vectors": 0,
    "cutoff": 4.0,
    "hidden": 8,
    "elements": [1, 6],
    "report": {"r2": 0.9},
    "training": {"frames": 30, "held_out": 3},
    "uqcalc_version": "0.0.9",
    "schema": 1,
}
SIGNAL = {
    "kind": "latent_distance",
    "fingerprint": "toy:0",
    "feature_dim": 4,
    "elements": [1, 6],
    "risk": "distance of the features",
    "unit": "",
    "settings": {"kind": "mahalanobis", "reduce": "mean"},
    "training": {"structures": 30},
    "report": {"held_out_median": 1.5},
    "notes": ["no groups were given"],
    "uqcalc_version": "0.0.9",
    "schema": 1,
}
PROBE = {
    "fingerprint": "toy:0",
    "target": "forces",
    "boundary": 0.1,
    "unit": "eV/Å",
    "architecture": "standard",
    "shape": {},
    "elements": [1, 6],
    "sizes": [1, 9],
    "calibration": {"slope": 1.0, "intercept": 0.5},
}
CARDS = {
    "probe": (Card, PROBE, ProbeError),
    "head": (HeadCard, HEAD, ModelError),
    "signal": (SignalCard, SIGNAL, SignalError),
}


def as_json(entries):
    return json.loads(json.dumps(entries))


def kept(stored, found):
    """Whether every entry of a file has its value; a later version may add entries."""
    if isinstance(stored, dict):
        return all(k in found and kept(v, found[k]) for k, v in stored.items())
    return json.dumps(stored) == json.dumps(found)  # NaN equals NaN


@pytest.mark.parametrize("name", PROBE_FILES.values())
def test_a_probe_of_the_package_is_written_as_it_was_read(name, tmp_path):
    path = files("uqcalc") / "data" / name
    stored = json.loads(metadata_of(path)[Card.file.key])
    card, tensors = Card.read(path)
    assert kept(stored, as_json(card.to_dict()))
    assert kept(card.to_dict(), Card.of(path).to_dict())
    again = Probe.load(path).save(tmp_path / name)
    assert kept(stored, json.loads(metadata_of(again)[Card.file.key]))
    read, after = Card.read(again)
    assert kept(card.to_dict(), read.to_dict())
    assert set(after) == set(tensors)
    assert all(torch.equal(after[key], value) for key, value in tensors.items())


@pytest.mark.parametrize("name", ["head", "signal"])
def test_a_card_of_an_earlier_version_keeps_its_entries(name, tmp_path):
    kind, entries, _ = CARDS[name]
    card = kind.from_dict(entries)
    assert card.to_dict() == entries
    assert as_json(card.to_dict()) == entries
    weights = {"a": torch.arange(3.0)}
    path = card.write(tmp_path / "file", weights)
    read, tensors = kind.read(path)
    # a file that is written now has a checksum, and its schema says so
    assert read.to_dict() == entries | {"schema": kind.file.schema}
    assert torch.equal(tensors["a"], weights["a"])


@pytest.mark.parametrize("name", CARDS)
def test_base_card_refuses_invalid_entries(name):
    kind, entries, error = CARDS[name]
    for changes, message in (
        ({"schema": kind.file.schema + 1}, "schema of a .* must be at most .* upgrade"),
        ({"schema": "new"}, "schema of a .* got 'new'"),
        (
            {"elements": [0, 6]},
            r"elements of a .* must be atomic numbers, got \[0, 6\]",
        ),
        ({"colour": "red"}, "card of a .* must have the entries .*colour"),
        ({"report": 3}, "entry 'report' of card of a"),
    ):
        with pytest.raises(error, match=message):
            kind.from_dict(entries | changes)
    missing = {k: v for k, v in entries.items() if k != "fingerprint"}
    with pytest.raises(error, match="must have the entries"):
        kind.from_dict(missing)
    assert (
        kind.from_dict({k: v for k, v in entries.items() if k != "schema"}).schema == 1
    )


@pytest.mark.parametrize("name", CARDS)
def test_a_card_in_words_names_backbone_and_elements(name):
    kind, entries, _ = CARDS[name]
    text = str(kind.from_dict(entries))
    assert text.startswith(f"{kind.file.name} for toy:0: ")
    assert "elements H, C" in text

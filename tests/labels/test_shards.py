"""Features on disk: not lost, not evaluated twice, not in memory at once."""

import pickle
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ase import Atoms
from builders import rattled
from closeness import close
from probe.toys import ToyBackbone, random_prediction

from uqcalc import Labels, Recipe, fit
from uqcalc.errors import FileWarning, LabelError, RecordError
from uqcalc.fitting import batches
from uqcalc.fitting.batches import Feed, passes
from uqcalc.fitting.network import fit_single
from uqcalc.fitting.training import fit_datasets
from uqcalc.labels import features as featurecache, shardfile, shards as module
from uqcalc.labels.dataset import Dataset, build_dataset
from uqcalc.labels.shardfile import ShardWriter
from uqcalc.labels.shards import AtomRows, Shards, evenly


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    for place in (shardfile, featurecache):
        monkeypatch.setattr(place, "MOST_STRUCTURES", 8)


def some_predictions(count=30, width=5, *, charges=False):
    return [
        random_prediction(2 + i % 7, width, seed=i, charges=charges)
        for i in range(count)
    ]


def written(folder, predictions):
    with ShardWriter(folder, "toy:0") as writer:
        for prediction in predictions:
            writer.add(prediction)
    return Shards.open(folder)


def same(one, other):
    pairs = ("numbers", "positions", "cell", "pbc", "energy", "forces")
    assert all(np.array_equal(getattr(one, k), getattr(other, k)) for k in pairs)
    assert torch.equal(one.features, other.features)
    for mine, theirs in ((one.charges, other.charges),):
        assert (mine is None) == (theirs is None)
        assert mine is None or torch.equal(mine, theirs)


@pytest.mark.parametrize("charges", [False, True])
def test_predictions_come_back_as_they_were(tmp_path, charges):
    predictions = some_predictions(charges=charges)
    whole = {"energy": -1.5, "forces": predictions[3].forces + 1}  # of a sum
    predictions[3] = replace(predictions[3], results=whole)
    predictions[9].features[0, 2] = torch.nan
    shards = written(tmp_path / "a", predictions)
    assert len(shards) == 30
    assert len(list((tmp_path / "a").iterdir())) == 4
    for index, (one, other) in enumerate(zip(predictions, shards, strict=True)):
        if index != 9:
            same(one, other)
        assert other.results["energy"] == one.results.get("energy", one.energy)
        np.testing.assert_array_equal(
            other.results["forces"], one.results.get("forces", one.forces)
        )
    assert shards[9].features.isnan().sum() == 1
    np.testing.assert_array_equal(shards.sizes, [len(p.numbers) for p in predictions])
    with pytest.raises(IndexError):
        shards[30]


def test_a_shard_of_half_precision_is_still_read(tmp_path):
    """An earlier version could write features after their mean and spread."""
    predictions = some_predictions(5)
    [path] = written(tmp_path / "a", predictions).folder.path.iterdir()
    tensors, card = shardfile.FILE.read(path)
    features = tensors["features"]
    tensors["centre"], tensors["scale"] = features.mean(dim=0), features.std(dim=0)
    tensors["features"] = (features - tensors["centre"]) / tensors["scale"]
    tensors["features"] = tensors["features"].half()
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    card["checksum"] = shardfile._checksum(arrays)
    shardfile.FILE.write(path, tensors, card)
    after = torch.cat([p.features for p in Shards.open(tmp_path / "a")])
    gap = (features - after).abs() / tensors["scale"]
    assert gap.max() < 4 * 2**-11  # of up to four standard deviations


def test_selections_are_views_in_any_order_and_travel_to_other_processes(tmp_path):
    predictions = some_predictions()
    shards = written(tmp_path / "a", predictions)
    rows = np.random.default_rng(0).permutation(30)[:12]
    chosen = shards.take(rows)[2:]
    for found in (chosen, pickle.loads(pickle.dumps(chosen))):
        assert isinstance(found, Shards)
        for index, prediction in zip(rows[2:], found, strict=True):
            same(predictions[index], prediction)
        for index, numbers in zip(rows[2:], found.numbers, strict=True):
            np.testing.assert_array_equal(numbers, predictions[index].numbers)
        np.testing.assert_array_equal(found.blocks, rows[2:] // 8)
    flat = np.arange(9.0)
    atoms = AtomRows(flat, np.array([2, 5, 9])).take([2, 0])
    np.testing.assert_array_equal(np.concatenate(atoms), [5, 6, 7, 8, 0, 1])
    assert np.shares_memory(atoms[0], flat)


def test_few_shards_are_mapped_at_once(tmp_path, monkeypatch):
    shards = written(tmp_path / "a", some_predictions())
    monkeypatch.setattr(module, "OPEN_BYTES", 1)
    for index in np.random.default_rng(0).integers(0, 30, 60):
        shards[index]
        assert len(shards.folder._open) == 1


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda raw: raw[:-7], "not fully covered"),
        (lambda raw: raw[:0], "header"),
        (lambda raw: raw[:-7] + b"\x07" + raw[-6:], "checksum differs"),
        (lambda raw: raw[8:40], "header"),
    ],
)
def test_a_damaged_shard_is_named(tmp_path, spoil, why):
    written(tmp_path / "a", some_predictions())
    path = sorted((tmp_path / "a").iterdir())[1]
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(
        RecordError, match=rf"must be a complete file, got .*1\.saf.*{why}"
    ):
        Shards.open(tmp_path / "a")


def test_folders_without_usable_shards_are_refused(tmp_path):
    with pytest.raises(RecordError, match="must exist"):
        Shards.open(tmp_path / "nowhere")
    with pytest.raises(RecordError, match="must hold shards"):
        Shards.open(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(RecordError, match="must be a folder"):
        ShardWriter(tmp_path / "file", "toy:0")
    written(tmp_path / "a", some_predictions(8))
    with ShardWriter(tmp_path / "a", "toy:1") as writer:
        writer.add(random_prediction(3, 5))
    with pytest.raises(
        RecordError, match=r"belong to one backbone, got .*toy:0.*toy:1"
    ):
        Shards.open(tmp_path / "a")


class Counting(ToyBackbone):
    """Counts what it evaluates, and fails after ``fuel`` of them."""

    def __init__(self, *, fuel=10**9, shift=0.0, **options):
        super().__init__(**options)
        self.seen, self.fuel, self.shift = 0, fuel, shift

    def extra_state(self, atoms):
        return {"charge": atoms.info.get("charge")}

    def predict_many(self, frames, wanted=("energy", "forces")):
        self.seen += len(frames)
        if self.seen > self.fuel:
            msg = "the power went off"
            raise OSError(msg)
        done = super().predict_many(frames, wanted)
        for prediction in done:
            prediction.results["energy"] += self.shift
        return done


def labelled(count=30):
    frames = []
    for seed in range(count):
        atoms = rattled(["CH3OH", "H2O", "C2H6"][seed % 3], seed=seed)
        atoms.info |= {"REF_energy": -10.0 + seed, "run": seed // 3}
        atoms.arrays["REF_forces"] = np.full((len(atoms), 3), 0.01 * seed)
        frames.append(atoms)
    return frames


@pytest.mark.parametrize("target", ["forces", "energy"])
def test_cache_gives_the_same_predictions_without_evaluation(tmp_path, target):
    frames, labels = labelled(), Labels(target, group_key="run")
    plain = build_dataset(frames, Counting(), labels)
    for expected in (30, 2):  # two are evaluated again, as a check of the cache
        backbone = Counting()
        data = build_dataset(frames, backbone, labels, cache=tmp_path / "a")
        assert backbone.seen == expected
        assert isinstance(data.predictions, Shards)
        for one, other in zip(plain.predictions, data.predictions, strict=True):
            same(one, other)
        np.testing.assert_array_equal(data.errors, plain.errors)
        assert (data.groups, data.excluded) == (plain.groups, plain.excluded)
        for one, other in zip(plain.atom_errors, data.atom_errors, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-6)
    if target == "energy":
        np.testing.assert_array_equal(data.residuals, plain.residuals)
        assert data.fit_offsets().offsets == plain.fit_offsets().offsets
    some = data.subset([20, 3, 7])
    same(some.predictions[1], plain.predictions[3])
    np.testing.assert_allclose(some.atom_errors[2], plain.atom_errors[7], rtol=1e-6)
    assert isinstance(data.split((0.5, 0.5), 0)[1].predictions, Shards)


def test_other_labels_need_no_other_features(tmp_path):
    """Also if the backbone must count all of ``atoms.info`` as its input."""

    class Watchful(Counting):
        def extra_state(self, atoms):
            return ToyBackbone.extra_state(self, atoms)

    frames, labels = labelled(), Labels("energy", group_key="run")
    build_dataset(frames, Watchful(), labels, cache=tmp_path / "a")
    for atoms in frames:
        atoms.info["REF_energy"] += 0.5
    backbone = Watchful()
    build_dataset(frames, backbone, labels, cache=tmp_path / "a")
    assert backbone.seen == 2  # evaluated again, as a check of the cache
    frames[3].info["charge"] = 1
    build_dataset(frames, backbone, labels, cache=tmp_path / "a")
    assert backbone.seen == 5


def test_only_new_geometries_are_evaluated(tmp_path):
    frames, labels = labelled(), Labels()
    build_dataset(frames[:20], Counting(), labels, cache=tmp_path / "a")
    ions = [frame.copy() for frame in frames[:3]]
    for ion in ions:
        ion.info["charge"] = 1
    turned = frames[::-1] + ions
    for frame in turned:
        frame.arrays["REF_forces"] = frame.arrays["REF_forces"] * 2  # labels only
    backbone = Counting()
    data = build_dataset(turned, backbone, labels, cache=tmp_path / "a")
    assert backbone.seen == 2 + 10 + 3
    for frame, prediction in zip(turned, data.predictions, strict=True):
        np.testing.assert_array_equal(frame.positions, prediction.positions)


def test_an_interrupted_evaluation_goes_on_after_the_last_whole_shard(tmp_path):
    frames, labels = labelled(), Labels()
    with pytest.raises(OSError, match="power"):
        build_dataset(frames, Counting(fuel=20), labels, cache=tmp_path / "a")
    backbone = Counting()
    build_dataset(frames, backbone, labels, cache=tmp_path / "a")
    assert backbone.seen == 2 + 30 - 16


def test_a_damaged_shard_is_made_again(tmp_path):
    frames, labels = labelled(), Labels()
    whole = build_dataset(frames, Counting(), labels, cache=tmp_path / "a")
    path = sorted((tmp_path / "a").glob("*.safetensors"))[2]
    path.write_bytes(path.read_bytes()[:-1])
    backbone = Counting()
    with pytest.warns(FileWarning, match=r"shard-000002\.saf.*it is deleted now"):
        data = build_dataset(frames, backbone, labels, cache=tmp_path / "a")
    assert backbone.seen == 2 + 8
    for frame, prediction in zip(frames, data.predictions, strict=True):
        np.testing.assert_array_equal(frame.positions, prediction.positions)
    np.testing.assert_array_equal(data.errors, whole.errors)


def test_a_cache_of_another_potential_is_refused(tmp_path):
    frames, labels = labelled(9), Labels()
    build_dataset(frames, Counting(), labels, cache=tmp_path / "a")
    with pytest.raises(RecordError, match=r"to this potential .toy:1.*toy:0"):
        build_dataset(frames, Counting(identity="toy:1"), labels, cache=tmp_path / "a")
    with pytest.raises(RecordError, match=r"energy .* off by .*dispersion"):
        build_dataset(frames, Counting(shift=1.0), labels, cache=tmp_path / "a")
    with pytest.raises(RecordError, match="folder of features must be a folder"):
        build_dataset(frames, Counting(), labels, cache=tmp_path / "no" / "where")


@pytest.mark.parametrize("others", [0, 30])
def test_a_lone_atom_does_not_hide_another_potential(tmp_path, others):
    """A single atom has no dispersion: energy, forces and features are the same."""

    class Dispersive(Counting):
        def predict_many(self, frames, wanted=("energy", "forces")):
            done = super().predict_many(frames, wanted)
            for prediction in done:
                prediction.results["energy"] -= 0.5 * (len(prediction.numbers) - 1)
            return done

    lone = Atoms("H")
    lone.info["REF_energy"] = 0.0  # its force is no label
    lone.arrays["REF_forces"] = np.zeros((1, 3))
    frames, labels = [lone, *labelled(others)], Labels("energy")
    build_dataset(frames, Counting(), labels, cache=tmp_path / "a")
    if others == 0:  # for a single atom it is the same potential
        build_dataset(frames, Dispersive(), labels, cache=tmp_path / "a")
        return
    with pytest.raises(RecordError, match=r"energy .* off by .*dispersion"):
        build_dataset(frames, Dispersive(), labels, cache=tmp_path / "a")


def test_failures_are_not_stored_and_are_named_each_time(tmp_path):
    class Failing(Counting):
        def predict_many(self, frames, wanted=("energy", "forces")):
            if any(frame.info["REF_energy"] in (-7, -2) for frame in frames):
                msg = "no neighbours"
                raise RuntimeError(msg)
            return super().predict_many(frames, wanted)

    frames = labelled()
    for _ in range(2):
        with pytest.raises(LabelError, match=r"not computable: 2 \(frames 3, 8\)"):
            build_dataset(frames, Failing(), Labels(), cache=tmp_path / "a")
    leave = ["not computable"]
    backbone = Failing()
    data = build_dataset(
        frames, backbone, Labels(), exclude=leave, cache=tmp_path / "a"
    )
    assert backbone.seen == 2  # evaluated again; the others were kept
    assert data.excluded == {"not computable": [3, 8]}
    plain = build_dataset(frames, Failing(), Labels(), exclude=leave)
    np.testing.assert_array_equal(data.errors, plain.errors)
    assert data.groups == plain.groups == [str(i) for i in range(30) if i not in (3, 8)]


@pytest.mark.filterwarnings("ignore::uqcalc.LabelWarning")  # they are very few
def test_a_fit_reads_what_an_earlier_fit_left(tmp_path):
    frames, labels = labelled(60), Labels(group_key="run", percentile=50)
    recipe, cache = Recipe("standard", epochs=1), tmp_path / "a"
    backbones, reports = [Counting(), Counting(), Counting()], []
    for backbone, place in zip(backbones, (None, cache, cache), strict=True):
        reports.append(fit(frames, backbone, labels, recipe, cache=place))
    assert [backbone.seen for backbone in backbones] == [60, 60, 2]
    for report in reports[1:]:
        np.testing.assert_array_equal(report.probability, reports[0].probability)


def test_frames_may_come_from_disk_one_by_one(tmp_path):
    frames, read = labelled(), []

    class Lazy:
        def __len__(self):
            return len(frames)

        def __getitem__(self, index):
            read.append(frames[index].copy())
            return read[-1]

    plain = build_dataset(frames, Counting(), Labels())
    data = build_dataset(Lazy(), Counting(), Labels(), cache=tmp_path / "a")
    assert read
    np.testing.assert_array_equal(data.errors, plain.errors)


def toy_data(predictions):
    errors = np.array([float(p.features[:, 0].mean()) for p in predictions]) + 5
    errors = errors + 0.2 * np.random.default_rng(0).normal(size=len(errors))
    backbone = SimpleNamespace(fingerprint="toy:0", provides=frozenset({"features"}))
    names = [str(index) for index in range(len(errors))]
    return Dataset(predictions, errors, names, {}), backbone


def test_a_probe_of_features_on_disk_is_the_probe_of_features_in_memory(tmp_path):
    predictions = some_predictions(160)
    shards = written(tmp_path / "a", predictions)
    recipe, reports = Recipe(epochs=3), []
    for source in (predictions, shards):
        data, backbone = toy_data(source)
        train, test = data.subset(range(120)), data.subset(range(120, 160))
        reports.append(
            fit_datasets(train, None, test, backbone, Labels(percentile=50), recipe)
        )
    one, other = reports
    np.testing.assert_array_equal(one.probability, other.probability)
    assert one.curve == other.curve


@pytest.mark.parametrize("charges", [False, True])
def test_batches_read_from_disk_are_those_kept_in_memory(tmp_path, charges):
    predictions = some_predictions(60, charges=charges)
    data, backbone = toy_data(predictions)
    if charges:
        backbone.provides |= {"charges"}
    probe, _ = fit_single(
        data, backbone, Labels(), Recipe("standard", epochs=1, patience=1), 5.0
    )
    shards = written(tmp_path / "a", predictions)
    kept, streamed = Feed(probe, predictions), Feed(probe, shards, budget=0)
    rows = np.array([50, 3, 17, 4])
    one, other = kept.batch(rows), streamed.batch(rows)
    close(one.features, other.features)
    close(one.scalars, other.scalars)
    assert one.sizes == other.sizes == data.sizes[rows].tolist()
    assert (one.charges is not None) == charges
    if charges:
        assert torch.equal(one.charges, other.charges)


def test_a_pass_visits_everything_once_and_few_shards_at_a_time(monkeypatch):
    monkeypatch.setattr(batches, "_POOL", 256)
    sizes = np.random.default_rng(0).integers(1, 30, 4000)
    feed = SimpleNamespace(sizes=sizes, blocks=np.arange(4000) // 64)
    indices = np.setdiff1d(np.arange(4000), np.arange(0, 4000, 9))
    rng = np.random.default_rng(1)
    for first in (True, False):
        stream = passes(indices, feed, 32, rng)
        if not first:
            feed.blocks = None
        drawn = [next(stream) for _ in range(-(-len(indices) // 32))]
        np.testing.assert_array_equal(np.sort(np.concatenate(drawn)), indices)
        near = [np.concatenate(drawn[k : k + 8]) for k in range(0, 104, 8)]
        shards = max(len(np.unique(rows // 64)) for rows in near)
        assert shards <= 6 if first else shards > 50
        padded = sum(len(b) * sizes[b].max() for b in drawn)
        assert padded < 1.35 * sizes[indices].sum()  # 1.9 without sorting


def test_steps_are_capped_however_many_labels_there_are():
    data, backbone = toy_data(some_predictions(100))
    recipe = Recipe("standard", epochs=50, patience=50, batch_size=4, most_steps=70)
    _, curve = fit_single(data, backbone, Labels(), recipe, 5.0)
    assert len(curve) == 3  # epochs of 23 batches
    np.testing.assert_array_equal(evenly(5, 9), np.arange(5))
    np.testing.assert_array_equal(evenly(9, 3), [0, 4, 8])

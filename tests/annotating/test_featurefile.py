"""Features in HDF5: those of the tap, in order, and what is left out is named."""

from __future__ import annotations

import numpy as np
import pytest
from ase.build import molecule
from ase.io import read, write
from builders import mace_calculator, rattled, salt
from typer.testing import CliRunner

from uqcalc import tap, write_features
from uqcalc.cli import app
from uqcalc.errors import RecordError


h5py = pytest.importorskip("h5py")


@pytest.fixture(scope="module")
def model():
    return mace_calculator()


def frames():
    """Two molecules and a crystal, with a frame in the middle that has silver."""
    silver = molecule("CH4")
    silver.symbols[0] = "Ag"
    return [rattled(), salt(), silver, rattled("CH3CH2OH", seed=2)]


def test_a_trajectory_given_as_the_target_stays_as_it_is(model, tmp_path):
    source = tmp_path / "md.xyz"
    write(source, rattled())
    before = source.read_bytes()
    with pytest.raises(RecordError, match=r"must end in \.h5 or \.hdf5, got md\.xyz"):
        write_features(source, source, model)
    assert source.read_bytes() == before


def test_the_file_has_the_features_of_the_tap_in_order(model, tmp_path):
    write(tmp_path / "md.xyz", frames())
    summary = write_features(
        tmp_path / "md.xyz", tmp_path / "f.h5", model, batch_atoms=10
    )
    read_back = read(tmp_path / "md.xyz", ":")
    good = [read_back[k] for k in (0, 1, 3)]
    with h5py.File(tmp_path / "f.h5") as file:
        assert list(file["frame"]) == [0, 1, 3]
        assert list(file["atoms"]) == [len(atoms) for atoms in good]
        numbers = np.concatenate([atoms.numbers for atoms in good])
        np.testing.assert_array_equal(file["numbers"], numbers)
        assert file["features"].dtype == np.float64  # as the model
        for atoms, first in zip(good, file["first"], strict=True):
            ours = file["features"][first : first + len(atoms)]
            theirs = tap(model)(atoms).features.numpy()
            np.testing.assert_allclose(ours, theirs, atol=1e-8)
        assert list(file["left_out/frame"]) == [2]
        assert b"Ag" in file["left_out/reason"][0]
        assert file.attrs["fingerprint"] == tap(model).fingerprint
    assert summary.left_out[0][0] == 2
    assert "3 frames, 23 atoms, 8 numbers" in str(summary)
    assert "frame 2: elements must be among" in str(summary)


def test_a_part_of_the_frames_keeps_its_numbers(model, tmp_path):
    write(tmp_path / "md.xyz", [rattled(seed=k) for k in range(6)])
    write_features(tmp_path / "md.xyz", tmp_path / "f.h5", model, index="1::2")
    with h5py.File(tmp_path / "f.h5") as file:
        assert list(file["frame"]) == [1, 3, 5]
        assert len(file["left_out/reason"]) == 0


def test_frames_before_damage_are_kept_and_nothing_replaces_a_file(model, tmp_path):
    path, target = tmp_path / "md.xyz", tmp_path / "f.h5"
    write(path, [rattled(seed=k) for k in range(3)])
    text = path.read_text()
    path.write_text(text[: -len(text) // 6])
    with pytest.raises(RecordError, match=r"readable to its end.*after 2 frames"):
        write_features(path, target, model)
    with h5py.File(target) as file:
        assert list(file["frame"]) == [0, 1]
    before = target.read_bytes()
    write(path, frames()[2])
    with pytest.raises(RecordError, match="at least one frame that the model can"):
        write_features(path, target, model)
    assert target.read_bytes() == before
    assert {p.name for p in tmp_path.iterdir()} == {"md.xyz", "f.h5"}


def test_the_command_writes_the_file_and_its_status_counts_left_out_frames(tmp_path):
    write(tmp_path / "md.xyz", frames()[::2])
    words = ["features", tmp_path / "md.xyz", "-o", tmp_path / "f.h5"]
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 1, done.output
    assert "left out: 1 frames" in done.stdout
    with h5py.File(tmp_path / "f.h5") as file:
        assert file["features"].shape[0] == 6

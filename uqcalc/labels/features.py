"""From frames to predictions for a probe, with features and charges on the CPU."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import BaseCalculator
from numpy.typing import NDArray

from uqcalc.backbones.base import Backbone
from uqcalc.backbones.batching import batches, predict_each
from uqcalc.backbones.fingerprint import same_model
from uqcalc.backbones.prediction import Prediction
from uqcalc.backbones.registry import tap
from uqcalc.cluster import Pool, RayWorkers, running
from uqcalc.errors import FileWarning, RecordError
from uqcalc.files.writing import OneWriter
from uqcalc.labels.labels import geometry_key
from uqcalc.labels.shardfile import (
    FILE,
    MOST_ATOMS,
    MOST_STRUCTURES,
    ShardWriter,
    make_folder,
)
from uqcalc.labels.shards import Folder, Shards, open_folder
from uqcalc.progress import progress_bar
from uqcalc.targets import voigt_stress


class Evaluated(NamedTuple):
    """Predictions of frames, and the frames on which the backbone failed.

    Attributes
    ----------
    predictions : sequence of Prediction
        Predictions of the frames that did not fail, in order.
    failed : dict
        Index among the requested frames -> error message of the backbone.
    """

    predictions: Sequence[Prediction]
    failed: dict[int, str]


PLAIN = ("energy", "forces")  # what every probe needs beside features


def predict_all(
    frames: Sequence[Atoms],
    rows: Sequence[int],
    backbone: Backbone,
    title: str,
    wanted: Collection[str] = PLAIN,
    workers: RayWorkers | None = None,
) -> Evaluated:
    """Return the predictions of ``frames[rows]``, all of them in memory.

    ``workers`` are those of a Ray cluster that evaluate the batches.
    """
    with _batches_of(backbone, workers) as source, progress_bar() as progress:
        task = progress.add_task(title, total=len(rows))
        advance = partial(progress.advance, task)
        chosen = [frames[i] for i in rows]
        done = evaluate_frames(chosen, source, advance, wanted, backbone.batch_atoms)
    failed = {k: one for k, one in enumerate(done) if isinstance(one, str)}
    return Evaluated([one for one in done if not isinstance(one, str)], failed)


@contextmanager
def _batches_of(
    backbone: Backbone, workers: RayWorkers | None
) -> Iterator[Backbone | Pool]:
    """Yield what evaluates batches: the backbone, or the workers of a cluster."""
    if workers is None:
        yield backbone
        return
    with running(replace(workers, make=partial(_tapped, workers.make))) as pool:
        yield pool


def _tapped(make: Callable[[], BaseCalculator | Backbone]) -> Backbone:
    return tap(make())


def evaluate_frames(
    frames: Sequence[Atoms],
    source: Backbone | Pool,
    advance: Callable[[int], None],
    wanted: Collection[str],
    batch_atoms: int,
) -> list[Prediction | str]:
    """Evaluate frames, in native batches of similar size if the backbone has them.

    If the backbone fails on a frame, its entry is the error message. Predictions with
    NaN or infinity are returned unchanged.

    Parameters
    ----------
    source : Backbone or Pool
        What evaluates the batches.
    advance : callable
        Called with 1 after each frame, for a progress bar.
    wanted : collection of str
        Results to keep: "energy", "forces" and, for frames that are periodic in three
        directions, "stress".
    batch_atoms : int
        Largest number of atoms in a batch (`Backbone.batch_atoms`).
    """
    sizes = [len(frame) for frame in frames]
    by_size = sorted(range(len(sizes)), key=sizes.__getitem__)
    outcomes: dict[int, Prediction | str] = {}
    chosen = (frames[i] for i in by_size)
    jobs = ((batch, sorted(wanted)) for batch in batches(chosen, len, batch_atoms))
    if isinstance(source, Pool):
        evaluated = source.each(_evaluated, jobs)
    else:
        evaluated = (_evaluated(source, job) for job in jobs)
    found = (outcome for part in evaluated for outcome in part)
    for index, outcome in zip(by_size, found, strict=True):
        outcomes[index] = outcome
        advance(1)
    return [outcomes[i] for i in range(len(sizes))]


def _evaluated(
    backbone: Backbone, job: tuple[Sequence[Atoms], Sequence[str]]
) -> list[Prediction | str]:
    """Evaluate one batch, here or in a worker."""
    frames, wanted = job
    return [
        one if isinstance(one, str) else _slim(one, wanted)
        for one in predict_each(backbone, frames, wanted, finite=False)
    ]


def _slim(prediction: Prediction, wanted: Collection[str]) -> Prediction:
    """Copy features and charges to the CPU in float32; keep the ``wanted`` results."""
    charges = prediction.charges
    results = {k: prediction.results[k] for k in PLAIN}
    if "stress" in wanted and prediction.pbc.all() and "stress" in prediction.results:
        results["stress"] = voigt_stress(prediction.results["stress"])
    return Prediction(
        numbers=prediction.numbers,
        positions=prediction.positions,
        cell=prediction.cell,
        pbc=prediction.pbc,
        results=results,
        energy=prediction.energy,
        forces=prediction.forces,
        features=_own(prediction.features),
        charges=None if charges is None else _own(charges),
    )


def _own(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to("cpu", torch.float32, copy=True)


# Larger differences mean that another potential made the stored prediction: eV/atom,
# eV/Å, and a share of the RMS of the features. Changes of device or precision give far
# smaller differences.
_ENERGY, _FORCE, _FEATURE = 1e-3, 1e-2, 1e-2


def predict_cached(  # noqa: PLR0913  (passed on from `build_dataset`)
    frames: Sequence[Atoms],
    rows: Sequence[int],
    backbone: Backbone,
    cache: str | os.PathLike[str],
    title: str,
    label_keys: Collection[str] = (),
    wanted: Collection[str] = PLAIN,
    workers: RayWorkers | None = None,
) -> Evaluated:
    """Return the predictions of ``frames[rows]``; evaluate those not in the cache.

    The key of a prediction is the geometry (to 1e-6 Å) and all other input of the
    backbone. After an interruption the evaluation continues after the last complete
    shard. A damaged shard is computed again. Two stored predictions are computed again
    to check that the potential is the same. Failures are not stored.

    Parameters
    ----------
    cache : path
        Folder for this potential only; it may hold any number of sets of frames.
    label_keys : collection of str
        Entries of ``atoms.info`` that are labels. They are not part of the key, even if
        the backbone counts all of ``atoms.info`` as input: features do not depend on
        them.
    wanted : collection of str
        Results to store, as for `evaluate_frames`. With "stress", predictions that were
        stored without stress are computed again.
    workers : RayWorkers, optional
        Workers of a Ray cluster that evaluate the batches.

    Raises
    ------
    RecordError
        If the cache is of another potential, another process is writing to it, or the
        folder cannot be created.
    """
    path = make_folder(cache)
    folder, damaged = open_folder(path)
    _refuse_another(folder, backbone)
    keys = np.array([_key(frames[i], backbone, label_keys) for i in rows], dtype="S16")
    stress = "stress" in wanted
    found = _find(folder, keys, stress=stress)
    failed: dict[bytes, str] = {}
    if (found >= 0).any():
        _spot_check(frames, rows, found, folder, backbone)
    if damaged or (found < 0).any():
        with _one_builder(path):
            folder = _mended(folder)
            missing = np.flatnonzero(_find(folder, keys, stress=stress) < 0)
            _, first = np.unique(keys[missing], return_index=True)
            asked = [
                (rows[k], bytes(keys[k]).ljust(16, b"\0"))
                for k in missing[np.sort(first)]
            ]
            with (
                ShardWriter(path, backbone.fingerprint) as writer,
                _batches_of(backbone, workers if asked else None) as source,
            ):
                plan = (title, wanted, backbone.batch_atoms)
                failed = _evaluate(frames, asked, source, writer, plan)
            folder, _ = open_folder(path, folder)
        found = _find(folder, keys, stress=stress)
    reasons = {
        int(k): failed[bytes(keys[k]).ljust(16, b"\0")]
        for k in np.flatnonzero(found < 0)
    }
    return Evaluated(Shards(folder, found[found >= 0]), reasons)


@contextmanager
def _one_builder(path: Path) -> Iterator[None]:
    with OneWriter(path / "shards"):
        yield


def _evaluate(
    frames: Sequence[Atoms],
    asked: Sequence[tuple[int, bytes]],
    source: Backbone | Pool,
    writer: ShardWriter,
    plan: tuple[str, Collection[str], int],
) -> dict[bytes, str]:
    """Evaluate frames one shard at a time, frames of similar size together.

    ``plan`` is the title of the progress bar, the wanted results, and the largest
    number of atoms in a batch.

    Returns
    -------
    dict of key -> error message
        For frames on which the backbone failed.
    """
    failed = {}
    title, wanted, batch_atoms = plan
    with progress_bar() as progress:
        task = progress.add_task(title, total=len(asked))
        advance = partial(progress.advance, task)
        for block in _blocks(frames, asked):
            chosen = [frame for frame, _ in block]
            done = evaluate_frames(chosen, source, advance, wanted, batch_atoms)
            for outcome, (_, key) in zip(done, block, strict=True):
                if isinstance(outcome, str):
                    failed[key] = outcome
                else:
                    writer.add(outcome, key)
            writer.flush()
    return failed


def _blocks(
    frames: Sequence[Atoms], asked: Sequence[tuple[int, bytes]]
) -> Iterator[list[tuple[Atoms, bytes]]]:
    """Yield blocks of frames and keys; each block fits into a shard."""
    block: list[tuple[Atoms, bytes]] = []
    atoms = 0
    for index, key in asked:
        frame = frames[index]
        full = len(block) == MOST_STRUCTURES or atoms + len(frame) > MOST_ATOMS
        if block and full:
            yield block
            block, atoms = [], 0
        block.append((frame, key))
        atoms += len(frame)
    if block:
        yield block


def _mended(known: Folder) -> Folder:
    """Delete damaged shards, warn of each, and open the folder."""
    folder, damaged = open_folder(known.path, known)
    for path, reason in damaged.items():
        path.unlink()
        fault = reason.removesuffix(f"; {FILE.otherwise}")
        msg = f"{fault}; it is deleted now, and its features are computed again"
        warnings.warn(msg, FileWarning, stacklevel=5)
    return folder


def _refuse_another(folder: Folder, backbone: Backbone) -> None:
    if len(folder.sizes) and not same_model(folder.fingerprint, backbone.fingerprint):
        msg = (
            "cache of features must belong to this potential "
            f"({backbone.fingerprint}), got a cache of {folder.fingerprint} in "
            f"{folder.path}; choose another folder, or delete this one"
        )
        raise RecordError(msg)


def _spot_check(
    frames: Sequence[Atoms],
    rows: Sequence[int],
    found: NDArray[np.int64],
    folder: Folder,
    backbone: Backbone,
) -> None:
    """Compute the smallest stored structure and one of median size again; compare.

    The fingerprint of a potential and of its sum with another one are equal. A single
    atom does not show the difference, as it has no dispersion; a prediction with NaN
    does not either. So both are avoided.
    """
    kept = np.flatnonzero(found >= 0)
    sizes = folder.sizes[found[kept]]
    kept = kept[np.argsort(sizes, kind="stable")]
    several = kept[np.count_nonzero(sizes == 1) :]
    half = len(several) // 2
    for some in (several[:half], several[half:]) if len(several) else (kept,):
        for chosen in some:
            old = folder.read(int(found[chosen]))
            if old.finite:
                _compare(old, frames[rows[chosen]], folder, backbone)
                break


def _compare(old: Prediction, frame: Atoms, folder: Folder, backbone: Backbone) -> None:
    (new,) = backbone.predict_many([frame])
    features = new.features.detach().to("cpu", old.features.dtype)
    spread = float(features.square().mean().sqrt())
    gaps = {
        "energy [eV/atom]": abs(new.results["energy"] - old.results["energy"])
        / len(old.numbers),
        "force [eV/Å]": float(
            np.abs(new.results["forces"] - old.results["forces"]).max()
        ),
        "features": float((features - old.features).abs().max()) / (spread + 1e-12),
    }
    limits = dict(zip(gaps, (_ENERGY, _FORCE, _FEATURE), strict=True))
    for name, gap in gaps.items():
        if not gap <= limits[name]:
            msg = (
                f"cache of features must agree with this potential, got {name} off by "
                f"{gap:.3g} for a structure in {folder.path}: the calculator has "
                "changed, such as its dispersion correction; choose another folder, "
                "or delete this one"
            )
            raise RecordError(msg)


def _find(
    folder: Folder, keys: NDArray[np.bytes_], *, stress: bool = False
) -> NDArray[np.int64]:
    """Return the row of each key in the folder, -1 if it is missing.

    With ``stress``, rows that were stored without stress do not count.
    """
    filed = folder.keys()
    if stress:
        filed = np.where(folder.with_stress(), filed, b"")
    if len(filed) == 0:
        return np.full(len(keys), -1)
    order = np.argsort(filed, kind="stable")
    place = np.searchsorted(filed, keys, sorter=order).clip(max=len(filed) - 1)
    rows = order[place]
    return np.where(filed[rows] == keys, rows, -1)


def _key(frame: Atoms, backbone: Backbone, label_keys: Collection[str]) -> bytes:
    geometry = geometry_key(frame.numbers, frame.positions, frame.cell.array, frame.pbc)
    digest = hashlib.sha256(geometry)
    state: Mapping[str, Any] = backbone.extra_state(frame)
    state = {name: value for name, value in state.items() if name not in label_keys}
    for name in sorted(state):
        value = state[name]
        digest.update(name.encode())
        if isinstance(value, np.ndarray):
            digest.update(repr((value.dtype.str, value.shape)).encode())
            digest.update(value.tobytes())
        else:
            digest.update(repr(value).encode())
    return digest.digest()[:16]

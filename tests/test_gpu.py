"""On a GPU: the results of the CPU, one more synchronisation, linear memory.

No comparison is bitwise: sums over atoms have another order at every pass.
"""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from ase import units
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import thermalize_momenta
from builders import mace_calculator, rattled

from uqcalc import (
    ConformalInterval,
    EnergySpread,
    ForceSpread,
    Labels,
    LatentDistance,
    Monitor,
    PredictionRigidity,
    Recipe,
    ReliableCalculator,
    annotate,
    fit,
    tap,
)
from uqcalc.fitting.network import fit_single
from uqcalc.labels.dataset import build_dataset
from uqcalc.signals.base import to_host
from uqcalc.signals.probe import ProbeSignal
from uqcalc.testing import check_backbone, contract_frames


pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
]
DEVICE = "cuda"
WANTED = ["energy", "forces"]
LABELS = Labels("forces", group_key="run", percentile=50)
# float32 through two layers and a network; probabilities are of order 1
ALIKE = {"rtol": 2e-3, "atol": 2e-3}


def potential(*seeds, device=DEVICE):
    return mace_calculator(*seeds, dtype="float32", device=device)


def labelled(count, *, seed):
    """Frames whose error grows with their distortion."""
    rng = np.random.default_rng(seed)
    backbone = tap(potential(0, device="cpu"))
    frames = []
    for index in range(count):
        amount = rng.uniform(0.01, 0.3)
        name = ("H2O", "CH3OH", "NH3", "C2H6")[index % 4]
        atoms = rattled(name, seed=1000 * seed + index, amount=amount)
        atoms.info["run"] = f"{seed}/{index // 3}"
        prediction = backbone(atoms, WANTED)
        noise = amount / 2 * rng.normal(size=prediction.forces.shape)
        atoms.arrays["REF_forces"] = prediction.forces + noise
        atoms.info["REF_energy"] = prediction.energy + amount * rng.normal()
        frames.append(atoms)
    return frames


@pytest.fixture(scope="module")
def frames():
    return labelled(120, seed=0)


@pytest.fixture(scope="module")
def probe(frames):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of few labels
        return fit(frames, potential(0), LABELS, Recipe(epochs=20)).probe


@pytest.fixture(scope="module")
def signals(frames):
    calculator = potential(0)
    distance = LatentDistance.fit(frames, calculator)
    return [
        distance,
        LatentDistance.fit(frames, calculator, kind="nearest", nearest=3),
        PredictionRigidity.fit(frames, calculator),
        ConformalInterval.fit(frames, calculator, distance, labels=LABELS),
    ]


def read_alike(here, there, signals, atoms):
    """Read the same structure on both devices and compare the numbers."""
    pairs = [
        to_host([signal(backbone(atoms, WANTED)) for signal in signals])
        for backbone in (here, there)
    ]
    for ours, theirs in zip(*pairs, strict=True):
        assert ours.risk == pytest.approx(theirs.risk, rel=5e-3, abs=2e-3), ours.signal
        for key, value in theirs.results.items():
            np.testing.assert_allclose(
                ours.results[key], value, **ALIKE, err_msg=f"{ours.signal} {key}"
            )


@pytest.mark.parametrize("name", ["H2O", "CH3OH", "C2H6"])
def test_probe_fitted_on_one_device_gives_equal_readings_on_the_other(probe, name):
    backbones = tap(potential(0)), tap(potential(0, device="cpu"))
    read_alike(*backbones, [ProbeSignal(probe)], rattled(name, seed=5))


def test_batches_equal_single_readings(probe):
    backbone = tap(potential(0))
    frames = [rattled(name, seed=3) for name in ("H2O", "CH3OH", "NH3")]
    together = probe.read(backbone.predict_many(frames), importance=True)
    each = [probe.read([backbone(atoms, WANTED)], importance=True) for atoms in frames]
    for name in ("reliability", "importance", "atoms", "parts", "novelty"):
        alone = torch.cat([getattr(reading, name) for reading in each])
        torch.testing.assert_close(getattr(together, name), alone, **ALIKE)


def test_other_signals_give_equal_readings(signals):
    backbones = tap(potential(0)), tap(potential(0, device="cpu"))
    read_alike(*backbones, signals, rattled("CH3OH", seed=7))


def test_committees_give_equal_readings():
    backbones = tap(potential(0, 1, 2)), tap(potential(0, 1, 2, device="cpu"))
    read_alike(*backbones, [EnergySpread(), ForceSpread()], rattled("CH3OH", seed=8))


def synchronisations(calculator, atoms):
    calculator.get_property("forces", atoms)  # moves the weights, once
    atoms = atoms.copy()
    atoms.rattle(0.01, seed=1)
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            torch.cuda.set_sync_debug_mode("warn")  # warns of itself
            calculator.get_property("forces", atoms)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing CUDA operation" in str(w.message) for w in caught)


def test_a_step_waits_for_the_device_once_more_than_the_bare_one(probe, signals):
    atoms = rattled("CH3OH", seed=9)
    bare = synchronisations(potential(0), atoms)
    alone = ReliableCalculator(potential(0), probe)
    everything = ReliableCalculator(potential(0), probe, signals=signals)
    assert synchronisations(alone, atoms) == bare + 1
    assert synchronisations(everything, atoms) == bare + 1


def test_importance_takes_linear_memory(probe):
    """Weights of all pairs would be 20 000² in each of 8 heads: 13 GB."""
    backbone = tap(potential(0))
    prediction = backbone(rattled("CH3OH", seed=2), WANTED)
    atoms = 20_000
    rng = np.random.default_rng(0)
    features = prediction.features.repeat(atoms // len(prediction.numbers) + 1, 1)
    large = type(prediction)(
        numbers=np.resize(prediction.numbers, atoms),
        positions=rng.normal(size=(atoms, 3)),
        cell=prediction.cell,
        pbc=prediction.pbc,
        results={},
        energy=prediction.energy,
        forces=np.resize(prediction.forces, (atoms, 3)),
        features=features[:atoms],
    )
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    [reading] = to_host([ProbeSignal(probe)(large)])
    assert reading.results["probe_importance"].sum() == pytest.approx(1.0, abs=1e-3)
    assert torch.cuda.max_memory_allocated() - before < 1e9


def test_md_under_a_monitor_follows_the_bare_calculators(probe, tmp_path):
    runs = []
    for calculator in (potential(0), ReliableCalculator(potential(0), probe)):
        atoms = rattled("CH3OH", seed=4, amount=0.02)
        atoms.calc = calculator
        thermalize_momenta(atoms, 300, rng=np.random.default_rng(0))
        dynamics = Langevin(
            atoms, 0.2 * units.fs, temperature_K=300, friction=0.01, fixcm=False,
            rng=np.random.default_rng(1),
        )  # fmt: skip
        if isinstance(calculator, ReliableCalculator):
            Monitor(dynamics, log=tmp_path / "run.jsonl", on_unreliable=lambda _: None)
        dynamics.run(20)
        runs.append(atoms.positions)
    np.testing.assert_allclose(*runs, atol=1e-4)
    lines = (tmp_path / "run.jsonl").read_text().splitlines()
    assert len(lines) >= 21


def test_training_on_the_device_learns_what_the_cpu_does(frames):
    pytest.importorskip("lightning_fabric")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = build_dataset(frames, tap(potential(0)), LABELS)
    backbone = tap(potential(0))
    boundary = float(np.median(data.errors))
    curves = [
        fit_single(
            data,
            backbone,
            LABELS,
            Recipe("standard", epochs=5, dropout=0.0, accelerator=accelerator),
            boundary,
        )[1]
        for accelerator in ("cpu", DEVICE)
    ]
    np.testing.assert_allclose(*curves, rtol=5e-3)


def test_contract():
    check_backbone(lambda: potential(0), contract_frames(), exact=False)


def test_annotates(probe):
    calculator = ReliableCalculator(potential(0), probe)
    frames = [rattled("CH3OH", seed=seed) for seed in range(5)]
    done = annotate(frames, calculator)
    for atoms, copy in zip(frames, done, strict=True):
        expected = calculator.assess(atoms).results()
        told = copy.info["probe_reliability"]
        assert told == pytest.approx(expected["probe_reliability"], abs=2e-3)

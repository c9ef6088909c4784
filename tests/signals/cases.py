"""Labelled molecules under a toy potential, for the signals with a fit."""

from __future__ import annotations

import numpy as np
import torch
from builders import rattled
from probe.toys import Cohesion


NAMES = ("H2O", "CH3OH", "CO2", "CH4", "C2H6", "H2O2")


def labelled(count, *, seed=0, noise=0.05, amount=0.1):
    """Rattled molecules; the reference is the result of the toy plus Gaussian noise."""
    rng = np.random.default_rng(seed)
    frames = []
    for index in range(count):
        atoms = rattled(NAMES[index % len(NAMES)], seed=seed + index, amount=amount)
        calc = Cohesion()
        calc.calculate(atoms)
        atoms.info["REF_energy"] = calc.results["energy"] + noise * rng.normal()
        forces = calc.results["forces"]
        atoms.arrays["REF_forces"] = forces + noise * rng.normal(size=forces.shape)
        atoms.info["run"] = str(index // 4)
        frames.append(atoms)
    return frames


def gaussian_atoms(counts, width, *, seed=0):
    """Return (numbers, features): each element has its own Gaussian."""
    rng = np.random.default_rng(seed)
    numbers, rows = [], []
    for z, count in counts.items():
        mixing = rng.normal(size=(width, width)) / 2 + np.eye(width)
        rows.append(rng.normal(size=(count, width)) @ mixing + rng.normal(size=width))
        numbers.extend([z] * count)
    order = rng.permutation(len(numbers))
    return np.array(numbers)[order], torch.from_numpy(np.concatenate(rows)[order])

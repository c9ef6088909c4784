"""Simulation of charged particles, as in the data set of EGNN (arXiv:2102.09844).

Five particles in free space with charges of +1 or -1. The start has normal positions
and speeds of 0.5 in random directions. The force on particle i is
``sum_j q_i q_j r_ij / |r_ij|^3``, each component of the sum limited to 100.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


PARTICLES = 5
STEP = 0.001
LARGEST_FORCE = 0.1 / STEP
EVERY = 100  # steps between frames: frame k is step 100 (k + 1)


@dataclass(frozen=True)
class Trajectories:
    """Frames of several simulations.

    Attributes
    ----------
    charges : array (runs, particles)
    positions, velocities : arrays (runs, frames, particles, 3)
    """

    charges: NDArray[np.float64]
    positions: NDArray[np.float64]
    velocities: NDArray[np.float64]


def forces(
    charges: NDArray[np.float64], positions: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the limited forces, (runs, particles, 3)."""
    between = positions[:, :, None] - positions[:, None]
    square = (between**2).sum(-1)
    index = np.arange(positions.shape[1])
    square[:, index, index] = 1.0
    size = charges[:, :, None] * charges[:, None] / square**1.5
    size[:, index, index] = 0.0
    total = (size[..., None] * between).sum(2)
    return np.clip(total, -LARGEST_FORCE, LARGEST_FORCE)


def energies(
    charges: NDArray[np.float64],
    positions: NDArray[np.float64],
    velocities: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return kinetic plus potential energy of each run, (runs,)."""
    first, second = np.triu_indices(positions.shape[1], 1)
    apart = np.linalg.norm(positions[:, first] - positions[:, second], axis=-1)
    potential = (charges[:, first] * charges[:, second] / apart).sum(1)
    return 0.5 * (velocities**2).sum((1, 2)) + potential


def simulate(runs: int, frames: int, seed: int) -> Trajectories:
    """Simulate ``runs`` systems until they have ``frames`` frames."""
    rng = np.random.default_rng(seed)
    shape = (runs, PARTICLES, 3)
    charges = rng.choice([-1.0, 1.0], size=shape[:2])
    positions = rng.normal(size=shape) * (PARTICLES / 5.0) ** (1 / 3)
    velocities = rng.normal(size=shape)
    velocities *= 0.5 / np.linalg.norm(velocities, axis=-1, keepdims=True)
    places = np.empty((runs, frames, PARTICLES, 3))
    speeds = np.empty_like(places)
    velocities += STEP * forces(charges, positions)  # the public code starts like this
    for step in range(1, EVERY * frames + 1):
        positions += STEP * velocities
        if step % EVERY == 0:
            places[:, step // EVERY - 1] = positions
            speeds[:, step // EVERY - 1] = velocities
        velocities += STEP * forces(charges, positions)
    return Trajectories(charges, places, speeds)

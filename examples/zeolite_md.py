"""Compress a zeolite until the two forces of a potential disagree.

The script needs no labels: the limit on Force Delta comes from quiet runs, which are
not compressed. The small Orb in ``small_orb/`` was trained on all-silica zeolites at
ambient pressure only.
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from ase import units
from ase.io import read
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import thermalize_momenta
from small_orb.model import small_orb_calculator

from uqcalc import (
    ForceDelta,
    Monitor,
    Policy,
    ReliableCalculator,
    Threshold,
    calibrate_threshold,
)


parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
parser.add_argument("--runs", type=int, default=9, help="number of quiet runs")
parser.add_argument("--normal", type=int, default=150, help="steps of each quiet run")
parser.add_argument("--steps", type=int, default=1200, help="steps of the compression")
parser.add_argument("--picture", default="zeolite_md.png")
given = parser.parse_args()
rng = np.random.default_rng(7)


def watched(policy):
    return ReliableCalculator(
        small_orb_calculator(), signals=[ForceDelta()], policy=policy
    )


def langevin(atoms):
    return Langevin(
        atoms, 1.0 * units.fs, temperature_K=400, friction=0.02, fixcm=False, rng=rng
    )


# 1. Quiet runs, for the limit; every fourth frame is kept.
start = read(Path(__file__).parent / "zeolite.xyz")
calc = watched(Policy([Threshold("force_delta", suspect=10.0, unreliable=20.0)]))
quiet = []
for _ in range(given.runs):
    atoms = start.copy()
    atoms.calc = calc
    thermalize_momenta(atoms, temperature_K=400, rng=rng)
    dyn, frames = langevin(atoms), []
    dyn.attach(lambda a=atoms, to=frames: to.append(a.copy()), interval=4)
    dyn.run(given.normal)
    quiet.append(frames)
# Nine runs give a limit at which, on average, one further such run in ten is halted.
limits = calibrate_threshold(
    calculator=calc, runs=quiet, timestep_fs=4.0, alpha=1 / (given.runs + 1)
)
print(limits)
# That limit is for runs as long as the quiet ones. The compression is eight times as
# long, so up to eight times as many (80 %) of such runs would be halted. So the monitor
# acts at 1.5 times the limit: far above the values of the nine quiet runs, and far
# below those of a compressed zeolite. For a run as long as the quiet runs, use
# limits.policy().
[shown] = limits.thresholds
limit = Threshold("force_delta", shown.unreliable, 1.5 * shown.unreliable)

# 2. Compress: the edges shrink by 0.02 % a step, until the monitor halts the run.
atoms.calc = watched(Policy([limit]))
dyn = langevin(atoms)
volumes = []


def squeeze():
    volumes.append(atoms.get_volume() / len(atoms))
    atoms.set_cell(atoms.cell.array * 0.9998, scale_atoms=True)


monitor = Monitor(dyn, log="zeolite.jsonl", flagged="flagged.xyz", history=None)
dyn.attach(squeeze)
dyn.run(given.steps)
print(monitor.summary())

# 3. The picture: Force Delta against time, and the volume at the halt.
history = monitor.history
u = [event.readings["force_delta"] for event in history]
figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
axes.semilogy(u, color="#2c6e9e", lw=0.8)
axes.axhline(limit.suspect, color="#d9a441", lw=1, label="what the quiet runs showed")
axes.axhline(limit.unreliable, color="#b3312c", lw=1, label="limit")
axes.set(xlabel="step of squeezing (1 fs)", ylabel="Force Delta (eV/Å)")
axes.legend(frameon=False, loc="upper left")
if monitor.halted:
    axes.set_title(f"halted at {volumes[-1]:.1f} Å³/atom, from {volumes[0]:.1f}")
figure.savefig(given.picture, dpi=160)

"""From 1 000 labelled frames to a run that a monitor halts, in one script.

The potential makes frames of small molecules, and GFN2-xTB labels them. A probe is
fitted to these frames, tested on a new molecule and certified. Then a molecule is
heated until its potential fails, and the monitor halts the run.
"""

import argparse

import matplotlib.pyplot as plt
import numpy as np
from ase import Atoms, units
from ase.build import molecule
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import thermalize_momenta
from ase.md.verlet import VelocityVerlet

import uqcalc
from uqcalc import Labels, Monitor, Recipe, ReliableCalculator, plotting
from uqcalc.models.bundled import bare_calculator


try:
    from tblite.ase import TBLite
except ImportError as error:
    raise uqcalc.errors.MissingExtraError(
        "the reference here", "tblite", "xtb"
    ) from error

parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
parser.add_argument(
    "--quick", action="store_true", help="a short version to try it out"
)
parser.add_argument("--picture", default="from_labels_to_halting.png")
given = parser.parse_args()
runs, steps, most = (10, 8, 20) if given.quick else (50, 24, 2000)
rng = np.random.default_rng(0)
potential = bare_calculator()  # or your ASE calculator
reference = TBLite(method="GFN2-xTB", verbosity=0)


def hot_frames(name, copies):
    """Run a molecule at temperatures of 300 to 1500 K; keep four frames of each run."""
    # Copies that are far apart are independent runs, evaluated in one pass.
    alone, apart = molecule(name), np.array([30.0, 0, 0])
    many = Atoms(cell=[30 * copies, 30, 30], pbc=True)
    for place in range(copies):
        many += Atoms(alone.numbers, alone.positions + place * apart)
    many.calc = potential
    kelvin = np.repeat(rng.uniform(300, 1500, copies), len(alone))[:, None]
    # Twice the temperature at the minimum: half of it will be potential energy.
    width = np.sqrt(2 * units.kB * kelvin * many.get_masses()[:, None])
    many.set_momenta(width * rng.normal(size=(len(many), 3)))
    frames = []
    for _ in range(4):  # no heat bath: it has no effect in so few steps
        VelocityVerlet(many, 1.0 * units.fs).run(steps // 4)
        for place, part in enumerate(np.split(many.positions, copies)):
            frame = Atoms(alone.numbers, part - place * apart)
            # Frames of one run are alike: no split may divide them.
            frame.info["run"] = f"{name} {place}"
            frames.append(frame)
    return frames


def labelled(frames):
    """Add reference forces under the key that `Labels` reads."""
    for frame in frames:
        frame.arrays["REF_forces"] = reference.get_forces(frame)
    return frames


# 1. Labels. Some runs are kept for the guarantee: it needs frames outside the fit.
names = ["CH4", "CH3OH", "H2CO", "HCOOH", "CH3CONH2"]
frames = labelled([frame for name in names for frame in hot_frames(name, runs)])
kept = {run for run in sorted({f.info["run"] for f in frames}) if rng.random() < 0.4}
fitted = [frame for frame in frames if frame.info["run"] not in kept]
others = [frame for frame in frames if frame.info["run"] in kept]
print(f"{len(fitted)} frames to fit to, {len(others)} for the guarantee")

# 2. Fit. Warnings name problems of the labels; my.probe.html shows the scores.
labels = Labels("forces", group_key="run", boundary="100 meV/angstrom")
report = uqcalc.fit(fitted, potential, labels, Recipe(epochs=5 if given.quick else 60))
print(report)
probe = report.probe
report.write("my.probe")

# 3. Test on a molecule without labels: harder than new runs of labelled molecules.
strange = labelled(hot_frames("CH3CH2OH", runs // 2))
unseen = uqcalc.evaluate(probe, strange, potential, labels)
unseen.write("ethanol")
print(f"On ethanol, AUROC {unseen.report['auroc']:.2f}; see ethanol.html")

# 4. A guarantee, or an error with the number of groups that it needs.
tolerance = "150 meV/angstrom"
try:
    probe = uqcalc.certify(probe, others, potential, labels, tolerance=tolerance)
    print("Guarantee:", probe.card.guarantee)
except uqcalc.errors.LabelError as refusal:
    print("No guarantee:", refusal)
probe.save("my.probe")

# 5. Heat a molecule, by 2 K a step, until the monitor halts the run.
atoms = molecule("CH3CONH2")
atoms.calc = ReliableCalculator(potential, probe)
thermalize_momenta(atoms, temperature_K=300, rng=rng)
bath = {"temperature_K": 300, "friction": 0.02 / units.fs, "fixcm": False, "rng": rng}
dyn = Langevin(atoms, 0.5 * units.fs, **bath)
dyn.attach(lambda: dyn.set_temperature(temperature_K=300 + 2 * dyn.nsteps))
monitor = Monitor(dyn, log="run.jsonl", flagged="flagged.xyz", history=None)
path = []
dyn.attach(lambda: path.append(monitor.snapshot()))
dyn.run(most)
print(monitor.summary())

# 6. The true error, at every tenth frame and at the last one.
compared = [*path[:-1:10], path[-1]]
times = [frame.info["step"] * 0.5e-3 for frame in compared]
predicted = [frame.arrays["predicted_forces"] for frame in compared]
true = [reference.get_forces(frame) for frame in compared]
missed = [ours - theirs for ours, theirs in zip(predicted, true, strict=True)]
errors = np.sqrt([np.mean(difference**2) for difference in missed])
history, card = monitor.history, probe.card
last = errors[-10:]  # of the last 50 fs, the window of the monitor
print(
    f"True force error: {1000 * errors[:10].mean():.0f} meV/Å in the first frames, "
    f"{1000 * last.mean():.0f} in the last {len(last)}; "
    f"beyond the boundary: {np.sum(last > card.boundary)} of those, "
    f"{np.sum(errors[:-10] > card.boundary)} of the {len(errors[:-10])} before"
)

figure, axes = plt.subplots(
    4, sharex=True, figsize=(7, 6), height_ratios=[1, 1, 1, 0.2], layout="constrained"
)
plotting.plot_temperature(history, axes[0])
plotting.plot_probability(history, card.suspect, card.unreliable, axes[1])
plotting.plot_true_error(times, errors, card.boundary, axes[2])
plotting.plot_verdicts(history, axes[3])
axes[3].set(xlabel="time [ps]")
axes[0].set_title(monitor.reason or "not halted", fontsize=9)
figure.savefig(given.picture, dpi=160)

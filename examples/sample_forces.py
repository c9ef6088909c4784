"""Sample the forces of a potential along a run, and compare with the true forces.

Noise in the layers of the bundled potential is trained on frames of small molecules
with GFN2-xTB labels. Then another molecule is heated. The verdict of the probe halts
the run; the members give error bars. The picture shows the forces of all members and
the true force against time.
"""

import argparse

import matplotlib.pyplot as plt
import numpy as np
from ase import units
from ase.build import molecule
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import thermalize_momenta
from ase.md.verlet import VelocityVerlet

import uqcalc
from uqcalc import FunctionalSpread, Labels, Monitor, plotting
from uqcalc.models.bundled import bare_calculator
from uqcalc.types import PerturbationSettings


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
parser.add_argument("--picture", default="sample_forces.png")
given = parser.parse_args()
runs, epochs, most = (2, 1, 10) if given.quick else (8, 8, 3000)
rng = np.random.default_rng(0)
potential = bare_calculator()  # any MACE, Orb or CHGNet calculator
reference = TBLite(method="GFN2-xTB", verbosity=0)


def hot_frames(name, run):
    """Run a molecule from 300 to 1500 K; keep three labelled frames."""
    atoms = molecule(name)
    atoms.calc = potential
    # Twice the temperature at the minimum: half of it will be potential energy.
    thermalize_momenta(atoms, temperature_K=2 * rng.uniform(300, 1500), rng=rng)
    for _ in range(3):
        VelocityVerlet(atoms, 1.0 * units.fs).run(8)
        frame = atoms.copy()
        frame.arrays["REF_forces"] = reference.get_forces(frame)
        frame.info["run"] = f"{name} {run}"
        yield frame


# 1. Train the noise. The potential itself stays as it is.
names = ["CH4", "CH3OH", "H2CO", "HCOOH", "CH3CONH2"]
frames = [f for name in names for run in range(runs) for f in hot_frames(name, run)]
perturbation = uqcalc.perturb(
    potential,
    frames,
    Labels(group_key="run"),
    settings=PerturbationSettings(epochs=epochs, members=4),
)
perturbation.save("my.perturbation")
scores = perturbation.card.report
print(
    f"{len(frames)} labels. On held-out runs: mean absolute error "
    f"{1000 * scores['mae_forces_eV_per_A']:.0f} meV/Å, CRPS of the members "
    f"{1000 * scores['crps_forces_eV_per_A']:.0f} meV/Å"
)

# 2. Heat another molecule, by 2 K a step, until the probe halts the run. The spread of
# the members is logged; without limits in the policy it does not change the verdict.
spread = FunctionalSpread(perturbation, members=8, interval=10)
atoms = molecule("CH3CH2OH")
atoms.calc = uqcalc.ReliableCalculator(potential, "auto", [spread])
thermalize_momenta(atoms, temperature_K=300, rng=rng)
bath = {"temperature_K": 300, "friction": 0.02 / units.fs, "fixcm": False, "rng": rng}
dyn = Langevin(atoms, 0.5 * units.fs, **bath)
dyn.attach(lambda: dyn.set_temperature(temperature_K=300 + 2 * dyn.nsteps))
monitor = Monitor(dyn, log="sample_forces.jsonl", mode="new")
path = []
dyn.attach(lambda: path.append(atoms.copy()), interval=2)
dyn.run(most)
print(monitor.summary())

# 3. Sample the forces, and compute the true forces, for all frames of the first and
# last 60 fs and every tenth frame in between.
last = len(path) - 1
chosen = [k for k in range(len(path)) if k < 60 or k > last - 60 or k % 10 == 0]
members, truth = [], []
for k in chosen:
    members.append(perturbation.sample(path[k], 32, potential).forces)
    truth.append(reference.get_forces(path[k]))
members, truth = np.array(members), np.array(truth)  # (frames, members, atoms, 3)
times = np.array(chosen)  # fs
carbon, oxygen = 1, 2
bond = [path[k].positions[oxygen] - path[k].positions[carbon] for k in chosen]
bond = np.array([vector / np.linalg.norm(vector) for vector in bond])
fan = np.einsum("fmx,fx->fm", members[:, :, oxygen], bond)
true = np.einsum("fx,fx->f", truth[:, oxygen], bond)
low, high = np.quantile(fan, [0.05, 0.95], axis=1)
inside = (low <= true) & (true <= high)
errors = np.sqrt(np.mean((members.mean(axis=1) - truth) ** 2, axis=(1, 2)))
widths = np.sqrt(np.mean(members.var(axis=1, ddof=1), axis=(1, 2)))
first, final = times < 60, times > last - 60
print(
    f"The true force is within the 90 % band in {inside[first].mean():.0%} of the "
    f"first 60 fs and in {inside[final].mean():.0%} of the last; true error "
    f"{1000 * errors[first].mean():.0f} and {1000 * errors[final].mean():.0f} meV/Å, "
    f"spread {1000 * widths[first].mean():.0f} and {1000 * widths[final].mean():.0f}"
)

blue, _, red = plotting.COLOURS.values()
figure, axes = plt.subplot_mosaic(
    [["first", "final"], ["run", "run"]], figsize=(7, 5.4), layout="constrained"
)
ending = "before the halt" if monitor.halted else "of the run"
titles = {"first": "first 60 fs", "final": f"last 60 fs {ending}"}
for name, rows in (("first", first), ("final", final)):
    ax, out = axes[name], rows & ~inside
    ax.plot(times[rows], fan[rows], color=blue, lw=0.3, alpha=0.3)
    ax.fill_between(times[rows], low[rows], high[rows], color=blue, alpha=0.25, lw=0)
    ax.plot(times[rows], true[rows], color=plotting.INK, lw=1.2)
    ax.plot(times[out], true[out], ".", color=red, ms=5)
    ax.set(xlabel="time [fs]", xlim=times[rows][[0, -1]])
    ax.set_title(titles[name], fontsize=9, loc="left")
axes["first"].set_ylabel("force on O along C-O [eV/Å]")
axes["first"].legend(
    handles=[
        plt.Line2D([], [], color=blue, lw=6, alpha=0.4, label="32 members, 90 %"),
        plt.Line2D([], [], color=plotting.INK, lw=1.2, label="GFN2-xTB"),
        plt.Line2D([], [], color=red, marker=".", lw=0, label="outside the band"),
    ],
    fontsize=8,
    framealpha=0.8,
    edgecolor="none",
)
ax = axes["run"]
ax.plot(times, errors, color=plotting.INK, lw=1, label="true error of the mean")
ax.plot(times, widths, color=blue, lw=1, label="spread of the members")
if monitor.halted:
    ax.axvline(last, color=red, lw=1, zorder=0)
    ax.set_title("halt by the probe", fontsize=9, color=red, loc="right")
ax.set(xlabel="time [fs]", ylabel="RMS over the forces [eV/Å]")
ax.set(xlim=(0, last), ylim=(0, 1.05 * max(errors.max(), widths.max())))
ax.set_title("whole run", fontsize=9, loc="left")
ax.legend(frameon=False, fontsize=8, loc="upper left")
for ax in axes.values():
    ax.spines[["top", "right"]].set_visible(False)
figure.savefig(given.picture, dpi=160)

"""Make the first files of a loop: labels of ethanol, a small MACE, and its probe.

    python prepare.py

The labels are GFN2-xTB energies and forces at 300 K. The potential is trained on 80 of
them, without hotter frames. Its probe is fitted on other runs, at 300 and 600 K.
"""

import argparse

import numpy as np
from ase import units
from ase.build import molecule
from ase.io import write
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import thermalize_momenta
from tblite.ase import TBLite
from train import train

import uqcalc
from uqcalc.models.bundled import build_model
from uqcalc.models.safemace import save_safe_mace


def labelled_run(temperature, frames, seed):
    """Return frames of a run of GFN2-xTB, 10 fs apart, with their labels."""
    rng = np.random.RandomState(seed)
    atoms = molecule("CH3CH2OH")
    atoms.calc = TBLite(method="GFN2-xTB", verbosity=0)
    thermalize_momenta(atoms, temperature_K=temperature, rng=rng)
    bath = {"temperature_K": temperature, "friction": 0.05 / units.fs}
    dyn = Langevin(atoms, 1.0 * units.fs, **bath, fixcm=False, rng=rng)
    dyn.run(100)  # to forget the start
    kept = []
    for _ in range(frames):
        dyn.run(10)
        frame = molecule("CH3CH2OH")
        frame.positions = atoms.positions
        frame.info["REF_energy"] = atoms.get_potential_energy()
        frame.arrays["REF_forces"] = atoms.get_forces()
        frame.info["uqcalc_event"] = f"run {seed}"  # frames of one run are alike
        kept.append(frame)
    return kept


def untrained(frames):
    """Return a MACE of one layer; the energy of an atom is fitted to the labels."""
    elements = [1, 6, 8]
    counts = [[np.sum(frame.numbers == z) for z in elements] for frame in frames]
    energies = [frame.info["REF_energy"] for frame in frames]
    forces = np.concatenate([frame.arrays["REF_forces"] for frame in frames])
    block = "RealAgnosticResidualInteractionBlock"
    options = {
        "dtype": "float32",
        "atomic_numbers": elements,
        "atomic_energies": np.linalg.lstsq(counts, energies)[0],
        "atomic_inter_scale": float(np.sqrt(np.mean(forces**2))),
        "atomic_inter_shift": 0.0,
        "r_max": 4.5,
        "num_bessel": 8,
        "num_polynomial_cutoff": 5,
        "max_ell": 2,
        "interaction_cls": block,
        "interaction_cls_first": block,
        "num_interactions": 1,
        "hidden_irreps": "32x0e",
        "MLP_irreps": "16x0e",
        "correlation": 3,
        "avg_num_neighbors": 8.0,
        "radial_MLP": [32, 32],
    }
    return build_model({"model": options})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="short, to try it out")
    quick = parser.parse_args().quick
    count, other, steps = (20, 5, 60) if quick else (40, 20, 800)

    print("labels: GFN2-xTB runs at 300 and 600 K", flush=True)
    first = [f for seed in (1, 2) for f in labelled_run(300, count, seed)]
    write("first_labels.xyz", first)
    write("start.xyz", first[-1])
    held = [f for seed in range(3, 9) for f in labelled_run(300, other, seed)]
    held += [f for seed in range(9, 13) for f in labelled_run(600, other, seed)]
    write("held_out.xyz", held)

    print("training: a small MACE", flush=True)
    save_safe_mace(untrained(first), "untrained.json")
    train("first_labels.xyz", "untrained.json", "first.json", 0, steps, 0.01)

    print("probe: on runs that the training has not seen", flush=True)
    # the force error that is accepted, RMS over components; the same as in loop.yaml
    limit = {"percentile": 50} if quick else {"boundary": "100 meV/angstrom"}
    labels = uqcalc.Labels(group_key="uqcalc_event", **limit)
    report = uqcalc.fit(held, uqcalc.open_model("mace:first.json"), labels)
    report.probe.save("first.probe")
    print(report)

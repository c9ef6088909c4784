"""A method that is not that of shipped labels is detected from the energies."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from toys import ToyBackbone

from uqcalc import Labels
from uqcalc.errors import LabelError
from uqcalc.fitting.shipped import compare_energies, describe, fit_shipped
from uqcalc.labels.shipped import SHIPPED, ShippedLabels


CRYSTALS = SHIPPED["pbe-crystals"]
ENERGIES = {29: 0.31, 47: -0.12, 79: 0.5}  # eV of each atom, for another zero


def alloys(energies) -> list[Atoms]:
    """Random alloys of Cu, Ag and Au near equilibrium, with energies of EMT."""
    rng, frames = np.random.default_rng(0), []
    for _ in range(40):
        atoms = bulk("Ag", cubic=True)
        atoms.numbers = rng.choice(list(ENERGIES), size=4)
        atoms.rattle(0.05, rng=rng)
        atoms.calc = EMT()
        shift = sum(energies.get(z, 0.0) for z in atoms.numbers.tolist())
        error = rng.choice([-2e-5, 2e-5])  # labels without any error are refused
        atoms.info["REF_energy"] = atoms.get_potential_energy() + shift + error
        atoms.arrays["REF_forces"] = atoms.get_forces()
        atoms.info["set"] = CRYSTALS.near[0]
        atoms.calc = None
        frames.append(atoms)
    return frames


@pytest.mark.parametrize("energies", [{}, ENERGIES], ids=["same", "another"])
def test_offset_for_each_element_detects_another_method(monkeypatch, energies):
    frames = alloys(energies)
    monkeypatch.setattr(ShippedLabels, "frames", lambda _: frames)
    found = compare_energies(CRYSTALS, ToyBackbone(EMT()), CRYSTALS.exclude)
    shifts = [np.mean([energies.get(z, 0.0) for z in a.numbers]) for a in frames]
    np.testing.assert_allclose(found.before, np.abs(shifts).mean(), atol=1e-5)
    assert found.after < 0.05 * found.before + 1e-5
    assert found.telling is bool(energies)
    text = describe(CRYSTALS, Labels("stress"), found)
    assert text.startswith("P(RMS stress error <= boundary) against PBE(+U)")
    assert f"differ by {1000 * found.before:.3g} meV/atom" in text
    assert "MPtrj frames, which are in the training pool" in text


def test_frames_far_from_equilibrium_are_not_compared(monkeypatch):
    frames = alloys(ENERGIES)
    for frame in frames[:30]:
        frame.info["set"] = "random-TP"
    monkeypatch.setattr(ShippedLabels, "frames", lambda _: frames)
    found = compare_energies(CRYSTALS, ToyBackbone(EMT()), CRYSTALS.exclude)
    assert found is None
    assert "were not compared" in describe(CRYSTALS, Labels(), found)


def test_unknown_labels_are_refused_with_the_names():
    with pytest.raises(LabelError, match="must be one of pbe-crystals, got 'pbe'"):
        fit_shipped("pbe", ToyBackbone(EMT()))

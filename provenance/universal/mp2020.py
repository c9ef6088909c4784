"""Corrections of the Materials Project (2020) to PBE(+U) energies, for CHGNet.

CHGNet was trained on corrected energies (Deng et al. 2023,
doi:10.1038/s42256-023-00716-3), SevenNet-0 on raw ones. The corrections (Wang et al.
2021, doi:10.1038/s41598-021-94550-5) add an energy for each atom of an anion and of
a transition metal with +U in oxides and fluorides. pymatgen computes them without a
network, from composition and structure; the Hubbard U values are those of its input
sets, which the labels follow.

pymatgen takes short O-O distances as peroxides. In compressed, hot and random cells
such distances are not bonds of a peroxide: for those sets every oxygen counts as an
oxide. With peroxides, the median error of CHGNet on 20 such structures at high
temperature and pressure was 0.27 to 0.47 eV/atom, without them 0.09 to 0.25 eV/atom.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
from ase import Atoms


def corrections(
    frames: Sequence[Atoms], as_oxides: Collection[str], cache: Path | None = None
) -> np.ndarray:
    """Return the correction of each frame in eV, (frames,); NaN where there is none.

    Add it to the raw PBE(+U) energy.

    Parameters
    ----------
    frames : sequence of Atoms
        ``info["set"]`` names their set.
    as_oxides : collection of str
        Sets in which every oxygen counts as an oxide.
    cache : path, optional
        File that keeps the corrections of these frames (.npy).
    """
    if cache is not None and cache.is_file():
        kept: np.ndarray = np.load(cache)
        if len(kept) == len(frames):
            return kept
    found = np.array(
        [_correction(a, as_oxide=a.info["set"] in as_oxides) for a in frames]
    )
    if cache is not None:
        np.save(cache, found)
    return found


def _correction(atoms: Atoms, *, as_oxide: bool) -> float:
    from pymatgen.entries.compatibility import MaterialsProject2020Compatibility
    from pymatgen.entries.computed_entries import ComputedStructureEntry
    from pymatgen.io.ase import AseAtomsAdaptor

    scheme = MaterialsProject2020Compatibility(check_potcar=False)
    structure = AseAtomsAdaptor.get_structure(atoms)
    elements = structure.composition.elements
    with warnings.catch_warnings():  # of oxidation states that cannot be guessed
        warnings.simplefilter("ignore")
        anion = max(elements, key=lambda element: element.X).symbol
        known = scheme.u_settings.get(anion, {})
        hubbards = {e.symbol: known[e.symbol] for e in elements if e.symbol in known}
        entry = ComputedStructureEntry(
            structure,
            0.0,
            parameters={
                "run_type": "GGA+U" if hubbards else "GGA",
                "hubbards": hubbards,
            },
            data={"oxide_type": "oxide"} if as_oxide else {},
        )
        done = scheme.process_entry(entry, inplace=False, on_error="ignore")
    return float("nan") if done is None else float(done.correction)

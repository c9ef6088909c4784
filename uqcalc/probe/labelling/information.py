"""Forces that vanish by symmetry: labels that say nothing of a potential.

The force on one atom in vacuum, in a one-atom cell or on a site of a perfect crystal
without a polar direction is zero whatever the energy is. Reference and potential agree
there, and would agree if the potential knew nothing of the element.

The labels tell such frames without a look at the structure: both forces are zero.
Two different potentials have a minimum at the same place within 1e-4 Å (1e-3 eV/Å over
10 eV/Å²) only where symmetry puts it. A structure that is merely relaxed, with one of
the two, has forces of the other, and keeps its information. Of 4 875 crystals with PBE
forces and SevenNet-0's, 638 pass both limits below, and `spglib` finds every atom of
every one on a site of vanishing force.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from ase import Atoms
from numpy.typing import ArrayLike, NDArray

from uqcalc.errors import LabelWarning


# Reference forces are symmetrised or of double precision; predicted ones are sums in
# single precision of terms of up to 100 eV/Å [eV/Å].
_REFERENCE, _PREDICTED = 1e-4, 1e-3
_NAMED = 5  # frames


def vanishing(predicted: ArrayLike, reference: ArrayLike) -> NDArray[np.bool_]:
    """Return on which atoms both forces are zero up to round-off, (atoms,) of bool.

    Parameters
    ----------
    predicted, reference : arrays (atoms, 3)
        In eV/Å; NaN is not zero.
    """
    sizes = [
        np.linalg.norm(np.asarray(forces, dtype=float), axis=1)
        for forces in (predicted, reference)
    ]
    return np.asarray((sizes[0] <= _PREDICTED) & (sizes[1] <= _REFERENCE))


def is_lone(frame: Atoms, reference: ArrayLike) -> bool:
    """Return whether a frame is one atom in vacuum, its force zero as it must be."""
    alone = len(frame) == 1 and not frame.pbc.any()
    return alone and bool(np.linalg.norm(reference) <= _REFERENCE)


def warn_of_no_information(rows: Sequence[int], frames: int) -> None:
    """Name the frames that were left out because their forces vanish by symmetry.

    Warns
    -----
    LabelWarning
        If there are any.
    """
    if not rows:
        return
    named = ", ".join(map(str, rows[:_NAMED])) + (", ..." if len(rows) > _NAMED else "")
    msg = (
        f"{len(rows)} of {frames} frames (frames {named}) have no force by symmetry, "
        "neither in the labels nor predicted, such as isolated atoms and perfect "
        "crystals: files made to train potentials hold them as a rule. Whether a "
        "potential is right about forces they cannot say, so they are left out here; "
        "nothing needs to be done"
    )
    warnings.warn(msg, LabelWarning, stacklevel=4)

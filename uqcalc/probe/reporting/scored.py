"""What an evaluation found: what its page and its pictures are made from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uqcalc.probe.checkpoint import Probe


@dataclass(frozen=True, slots=True, eq=False)
class Tested:
    """Who the structures of an evaluation are, and what else was said of them.

    Attributes
    ----------
    formulas, groups : lists of str
        Without a group key the group is the place of the frame, from 0.
    outside : boolean array (structures,)
        Outside the scope of the probe (`uqcalc.probe.reporting.judged.Judged`).
    novelty : array (structures,) or None
        Largest distance of an atom, in units of the scope's limit.
    atom_probability, atom_errors : arrays (atoms,) or None
        P(|ΔF_i| <= the card's ``atom_boundary``), and |ΔF_i| in eV/Å, without the
        atoms whose force vanishes by symmetry.
    atom_groups : array (atoms,) or None
        Which of those atoms belong together, as numbers.
    frames : list of int or None
        Place of each structure among the frames that were passed, from 0; None where
        the structures were not frames of one list.
    """

    formulas: list[str]
    groups: list[str]
    outside: NDArray[np.bool_]
    novelty: NDArray[np.float64] | None = None
    atom_probability: NDArray[np.float64] | None = None
    atom_errors: NDArray[np.float64] | None = None
    atom_groups: NDArray[np.int64] | None = None
    frames: list[int] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """A probe, and its scores on structures it never saw.

    Attributes
    ----------
    probe : Probe
    report : dict
        `uqcalc.scores.classification_report` on the structures; ``spearman`` of error
        and risk; ``outside_scope``, the share of structures outside the scope;
        ``false_trust``, how many are wrong although their P reaches the card's
        ``suspect``, and ``false_trust_outside``, which share of those the scope tells;
        ``atoms``, the scores of the probabilities of single atoms, or None;
        ``excluded``, how many frames were left out for which defect.
    probability, errors : arrays (structures,)
        P(reliable), and the true errors in the unit of the boundary.
    tested : Tested
    """

    probe: Probe
    report: dict[str, Any]
    probability: NDArray[np.float64]
    errors: NDArray[np.float64]
    tested: Tested

"""`evaluate`: scores of a probe on held-out labelled structures."""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import BaseCalculator
from ase.symbols import Symbols
from numpy.typing import NDArray

from uqcalc.backbones.base import Backbone
from uqcalc.errors import LabelError, LabelWarning
from uqcalc.evaluation.guarantee import guarantee_report
from uqcalc.evaluation.members import backbone_of, distributions, evaluate_members
from uqcalc.evaluation.readings import StructureReadings, read_structures
from uqcalc.evaluation.regimes import regime_rows
from uqcalc.evaluation.sidefiles import side_files
from uqcalc.evaluation.worst import ERROR, RELIABILITY, structures_of, worst_rows
from uqcalc.files.writing import strict_json, whole
from uqcalc.htmltable import html_table
from uqcalc.labels.dataset import Dataset, held_out_dataset, labels_for
from uqcalc.labels.defects import check_frames
from uqcalc.labels.labels import Labels
from uqcalc.labels.regimes import regimes_of
from uqcalc.probe.probe import Probe, check_probe
from uqcalc.probe.validity import validity
from uqcalc.quantities import parse_quantity
from uqcalc.statistics import scores
from uqcalc.statistics.systems import Spread, holds


if TYPE_CHECKING:
    from matplotlib.figure import Figure


_HEADLINE = ("auroc", "spearman", "ece")  # scores of the short form


@dataclass(frozen=True, slots=True, eq=False)
class Tested:
    """Names of the structures of an evaluation, and further results for each.

    Attributes
    ----------
    formulas, groups : lists of str
        Without a group key the group is the index of the frame, from 0.
    outside : boolean array (structures,)
        Outside the scope of the probe (`StructureReadings`).
    novelty : array (structures,) or None
        Distance from the labels in units of the scope's limit (`Scope.novelty`).
    atom_probability, atom_errors : arrays (atoms,) or None
        P(|ΔF_i| <= the card's ``atom_boundary``), and |ΔF_i| in eV/Å, without the
        atoms whose force vanishes by symmetry.
    atom_groups : array (atoms,) or None
        Number of the group of each of these atoms.
    frames : list of int or None
        Index of each structure in the given frames, from 0; None if the structures are
        not from one list of frames.
    structures : dict
        Row -> the structure, for the worst structures (`uqcalc.evaluation.worst`), with
        the array ``force_error`` in eV/Å (NaN where the force vanishes by symmetry) and
        the array ``reliability`` if the probe gives P of atoms.
    """

    formulas: list[str]
    groups: list[str]
    outside: NDArray[np.bool_]
    novelty: NDArray[np.float64] | None = None
    atom_probability: NDArray[np.float64] | None = None
    atom_errors: NDArray[np.float64] | None = None
    atom_groups: NDArray[np.int64] | None = None
    frames: list[int] | None = None
    structures: dict[int, Atoms] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """A probe and its scores on held-out structures.

    Attributes
    ----------
    probe : Probe
    report : dict
        `uqcalc.statistics.scores.classification_report` of the structures;
        ``spearman``: rank correlation of error and risk; ``outside_scope``: share of
        structures outside the scope; ``false_trust``: number of wrong structures with P
        of at least the card's ``suspect``; ``false_trust_outside``: share of these
        outside the scope; ``atoms``: scores of the probabilities of single atoms, or
        None; ``excluded``: number of left-out frames for each defect.
    probability, errors : arrays (structures,)
        P(reliable), and the true errors in the unit of the boundary.
    tested : Tested
    """

    probe: Probe
    report: dict[str, Any]
    probability: NDArray[np.float64]
    errors: NDArray[np.float64]
    tested: Tested

    def __repr__(self) -> str:
        text = ", ".join(f"{name}: {value}" for name, value in self._rows())
        return f"<{type(self).__name__} {text}>"

    def _repr_html_(self) -> str:
        return html_table(type(self).__name__, self._rows())

    def _rows(self) -> list[tuple[str, str]]:
        from uqcalc.evaluation.report import score_rows

        return [
            ("probe gives", self.probe.card.meaning),
            ("structures", str(len(self.errors))),
            *(
                (row.score.name, row.value)
                for row in score_rows(self.report)
                if row.score.key in _HEADLINE
            ),
        ]

    def __str__(self) -> str:
        from uqcalc.evaluation.report import report_lines

        card = self.probe.card
        return "\n".join([str(card), validity(card), *report_lines(self.report)])

    def to_dict(self, warnings: Sequence[str] = ()) -> dict[str, Any]:
        """Return the card, the scores, the warnings, and the results per structure.

        Each entry of ``"structures"`` has the ``probability``, the true ``error`` in
        the unit of the boundary, ``reliable`` (the error is within the boundary),
        ``outside_scope``, the ``formula``, the ``group``, and if known the ``novelty``
        and the ``frame`` (index in the given frames, from 0).
        """
        tested = self.tested
        columns: dict[str, Any] = {
            "frame": tested.frames,
            "formula": tested.formulas,
            "group": tested.groups,
            "probability": self.probability.tolist(),
            "error": self.errors.tolist(),
            "reliable": (self.errors <= self.probe.card.boundary).tolist(),
            "outside_scope": tested.outside.tolist(),
            "novelty": None if tested.novelty is None else tested.novelty.tolist(),
        }
        known = {name: column for name, column in columns.items() if column is not None}
        rows = zip(*known.values(), strict=True)
        return {
            "card": self.probe.card.to_dict(),
            "report": self.report,
            "warnings": list(warnings),
            "structures": [dict(zip(known, row, strict=True)) for row in rows],
        }

    def figure(self) -> Figure:
        """Draw the reliability diagram, the risk-coverage curve, and all errors.

        If the probe has them, three more panels follow: single atoms, weights of the
        paths, and errors against the distance from the labels.
        """
        from uqcalc.evaluation.panels import draw_all

        return draw_all(self)

    def write(
        self, stem: str | os.PathLike[str], warnings: Sequence[str] = ()
    ) -> tuple[Path, Path, Path]:
        """Write ``STEM.json``, ``STEM.png`` and ``STEM.html``; return their paths.

        The JSON file is `to_dict`, the PNG file is `figure`. The HTML file has all
        results on one page and needs no network. With the extra ``report`` it shows the
        worst structures in three dimensions.

        Parameters
        ----------
        stem : path
            Path of the files without ending.
        warnings : sequence of str
            Messages of warnings (`LabelWarning`) to include.

        Raises
        ------
        RecordError
            As `side_files`.
        """
        from uqcalc.evaluation.page import render
        from uqcalc.plotting import save_figure

        numbers, picture, page = side_files(stem)
        content = strict_json(self.to_dict(warnings))
        text = json.dumps(content, indent=1, ensure_ascii=False)
        with whole(numbers) as partial:
            partial.write_text(text + "\n", encoding="utf-8")
        save_figure(self.figure(), picture)
        with whole(page) as partial:
            partial.write_text(render(self, warnings), encoding="utf-8")
        return numbers, picture, page


def evaluate(
    probe: Probe,
    frames: Sequence[Atoms],
    calculator: BaseCalculator | Backbone,
    labels: Labels | None = None,
    *,
    boundary: float | str | None = None,
    exclude: Collection[str] = (),
    cache: str | os.PathLike[str] | None = None,
) -> Evaluation:
    """Score ``probe`` on labelled frames that it was not fitted on.

    Parameters
    ----------
    frames : sequence of Atoms
        Labelled frames, with keys as in ``labels``.
    calculator : ase calculator or Backbone
        The potential of the probe. If it gives members (a committee, or a
        `uqcalc.ReliableCalculator` with a `uqcalc.FunctionalSpread`), they are scored,
        too: ``report["members"]`` (`uqcalc.evaluate_members`).
    labels : Labels, optional
        Keys of the reference. Its boundary is not used.
    boundary : float or str, optional
        Largest error of a reliable structure, in the unit of the card, or a text with a
        unit such as "50 meV/Å"; by default that of the probe.
    exclude : collection of str
        Frames with these defects are left out instead of an error (`build_dataset`).
    cache : path, optional
        Folder that stores the features of this potential, as for `uqcalc.fit`.

    Raises
    ------
    ProbeError
        If the probe was fitted on another backbone, or the boundary lies outside the
        errors of its labels.
    LabelError
        If labels are unusable, their target is not the probe's, or they ask for
        offsets and the probe has none.

    Warns
    -----
    LabelWarning
        If frames are among the labels of the fit, the calibration or `uqcalc.adapt`.
        ``report["seen"]`` is their number.
    """
    check_probe(probe)
    check_frames(frames, exclude)
    if boundary is not None:
        probe = probe.at(parse_quantity(boundary, probe.card.target, "boundary"))
    wanted = labels_for(probe.card, labels)
    backbone = backbone_of(calculator)
    probe.check(backbone)
    data = held_out_dataset(probe.card, frames, backbone, wanted, exclude, cache)
    found = evaluate_dataset(probe, data)
    left_out = {row for rows in data.excluded.values() for row in rows}
    scored = [
        row
        for row in range(len(frames))
        if row not in left_out and not probe.unseen_elements(frames[row].numbers)
    ]
    if distributions(backbone):
        kept = [frames[row] for row in scored]
        rows = evaluate_members(kept, backbone, wanted)
        found.report["members"] = [row.to_dict() for row in rows]
    if own := probe.seen.frames(frames, scored):
        found.report["seen"] = len(own)
        text = (
            f"frames should be new to the probe, got {len(own)} of {len(scored)} on "
            f"which it was fitted, calibrated or adapted (the first: frame {own[0]}): "
            "the scores are better than on new frames; leave these frames out"
        )
        warnings.warn(text, LabelWarning, stacklevel=2)
    return replace(found, tested=replace(found.tested, frames=scored))


def evaluate_dataset(probe: Probe, data: Dataset) -> Evaluation:
    """Score a probe as in `evaluate`, from a dataset with features.

    Structures with elements that the probe's labels lack get no probability. They are
    not scored; ``report["unseen_elements"]`` is their number.
    """
    data.check(probe.card.fingerprint)
    readings = read_structures(probe, data.predictions)
    known = np.flatnonzero(~readings.unseen)
    if not len(known):
        msg = (
            f"at least one of the {len(data)} structures must be made of the probe's "
            f"elements, got none; score structures of these elements: {probe.card}"
        )
        raise LabelError(msg)
    probability, errors = readings.probability[known], data.errors[known]
    tested = _tested(data, readings, known)
    rows = worst_rows(errors, probability, probe.card.boundary)
    of_atoms = {ERROR: data.atom_errors, RELIABILITY: readings.atoms}
    structures = structures_of(data.predictions, known, rows, of_atoms)
    tested = replace(tested, structures=structures)
    report = scores.classification_report(
        errors <= probe.card.boundary, probability, tested.groups
    )
    report["spearman"] = scores.spearman(errors, 1 - probability)
    regimes = regimes_of(data.predictions, data.conditions)
    report["regimes"] = regime_rows(
        [regimes[i] for i in known], errors <= probe.card.boundary, probability
    )
    middle = float(np.median(errors))
    report["median_error"] = middle
    report["auroc_at_median"] = scores.auroc(errors <= middle, probability)
    report["mean_probability"] = float(probability.mean())
    report["holds"] = holds(
        probability,
        errors <= probe.card.boundary,
        Spread.of_card(probe.card.training).system,
    )
    known_system = probe.card.added is not None or bool(probe.card.calibration.system)
    report["holds"]["adaptable"] = not known_system
    report["guarantee"] = guarantee_report(probe, data)
    report["groups"] = len(set(tested.groups))
    report["unseen_elements"] = len(data) - len(known)
    report["excluded"] = {k: len(v) for k, v in data.excluded.items() if v}
    report |= _scope_report(probe, probability, errors, tested.outside)
    report["atoms"] = _atom_report(probe, tested)
    return Evaluation(probe, report, probability, errors, tested)


def _tested(
    data: Dataset, readings: StructureReadings, known: NDArray[np.int64]
) -> Tested:
    numbers = data.numbers
    atom_probability = atom_errors = atom_groups = None
    if readings.atoms is not None and data.atom_errors is not None:
        atom_probability = np.concatenate([readings.atoms[i] for i in known])
        atom_errors = np.concatenate([data.atom_errors[i] for i in known])
        known_atoms = np.isfinite(atom_errors)  # NaN: force vanishes by symmetry
        atom_probability = atom_probability[known_atoms]
        atom_errors = atom_errors[known_atoms]
        _, which = np.unique([data.groups[i] for i in known], return_inverse=True)
        atom_groups = np.repeat(which, data.sizes[known])[known_atoms]
    return Tested(
        formulas=[_formula(numbers[i]) for i in known],
        groups=[data.groups[i] for i in known],
        outside=readings.outside[known],
        novelty=None if readings.novelty is None else readings.novelty[known],
        atom_probability=atom_probability,
        atom_errors=atom_errors,
        atom_groups=atom_groups,
    )


def _formula(numbers: NDArray[np.int64]) -> str:
    return str(Symbols(numbers).get_chemical_formula())


def _scope_report(
    probe: Probe,
    probability: NDArray[np.float64],
    errors: NDArray[np.float64],
    outside: NDArray[np.bool_],
) -> dict[str, Any]:
    """Return the share outside the scope, and how many structures are falsely trusted.

    A structure is falsely trusted if P is at least ``suspect`` and its error is above
    the boundary. The last entry is the share of these outside the scope, NaN if none;
    ``right_outside`` is that of the right structures with such a P.
    """
    card = probe.card
    trusted = (probability >= card.suspect) & (errors > card.boundary)
    known = card.scope is not None
    share = float(outside[trusted].mean()) if known and trusted.any() else math.nan
    right = (probability >= card.suspect) & (errors <= card.boundary)
    lost = float(outside[right].mean()) if known and right.any() else math.nan
    return {
        "outside_scope": float(outside.mean()) if known else math.nan,
        "right_outside": lost,
        "false_trust": int(trusted.sum()),
        "false_trust_outside": share,
    }


def _atom_report(probe: Probe, tested: Tested) -> dict[str, Any] | None:
    belief, errors = tested.atom_probability, tested.atom_errors
    boundary = probe.card.atom_boundary
    if belief is None or errors is None or boundary is None or not len(errors):
        return None
    reliable = errors <= boundary
    chance = scores.calibration_chance(reliable, belief, tested.atom_groups)
    return {
        "atoms": len(errors),
        "boundary": boundary,
        "prevalence": float(reliable.mean()),
        "auroc": scores.auroc(reliable, belief),
        "ece": scores.expected_calibration_error(reliable, belief),
        "ece_noise_floor": chance.mean,
        "ece_chance": chance.most,
        "spearman": scores.spearman(errors, 1 - belief),
    }

"""A band of images (NEB) under a monitor: verdicts for each image and the barrier."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from ase import Atoms

from uqcalc.records import Assessment, Level, Verdict
from uqcalc.resultcache import RECENT
from uqcalc.uses import judged_for, uncovered
from uqcalc.watching.structure import Structure


_FORCES_ONLY = (
    "No probe judges the energies of the images: this verdict is that on their forces."
)


@dataclass(frozen=True, slots=True, eq=False)
class BandAssessment:
    """Assessments, energies and barrier of a band of images at one step.

    Attributes
    ----------
    images : tuple of Assessment or None
        One for each image, in order. None for an image that was not judged: an end of
        the band without a `ReliableCalculator`, or a geometry that ``interval`` skips.
    energies_eV : tuple of float
        Potential energy of each image in eV; NaN if not known.
    worst : int or None
        Index of the image that decides the verdict of the step: the highest level and,
        within the level, the highest risk. None if no image was judged.
    highest : int
        Index of the image with the highest energy.
    barrier_eV : float
        Energy of the highest image minus that of the first image, in eV; NaN if the
        energy of the first or of a judged image is NaN.
    barrier : Verdict
        Verdict on ``barrier_eV``: the worse verdict of the first and the highest image.
        It is at least SUSPECT if one of these two was not judged, or if any other image
        is UNRELIABLE, because the true maximum may then be there. UNRELIABLE if
        ``barrier_eV`` is NaN.
    energies_judged : bool
        Whether a signal judges the energies of the images. Their verdict on the energy
        then counts for the barrier, too; otherwise only that on the forces, and
        `barrier_words` says so.
    """

    images: tuple[Assessment | None, ...]
    energies_eV: tuple[float, ...]
    worst: int | None
    highest: int
    barrier_eV: float
    barrier: Verdict
    energies_judged: bool = True

    @property
    def levels(self) -> tuple[Level | None, ...]:
        """The level of each image; None for an image that was not judged."""
        return tuple(None if a is None else a.level for a in self.images)

    def __str__(self) -> str:
        lines = [
            f"Image {index}: {energy:.6g} eV, {found or 'not judged'}"
            for index, (energy, found) in enumerate(
                zip(self.energies_eV, self.images, strict=True)
            )
        ]
        return "\n".join([*lines, self.barrier_words()])

    def barrier_words(self) -> str:
        """Return the barrier in eV and its verdict in one or two sentences."""
        reasons = "; ".join(self.barrier.reasons)
        words = (
            f"Barrier from image 0 to image {self.highest}: {self.barrier_eV:.4g} eV, "
            f"{self.barrier.level.name}{f' ({reasons})' if reasons else ''}."
        )
        if not self.energies_judged:
            words += f" {_FORCES_ONLY}"
        if self.barrier.level is not Level.UNRELIABLE:
            return words
        if math.isnan(self.barrier_eV):
            return f"{words} The barrier is not known."
        highest = self.levels[self.highest] is Level.UNRELIABLE
        which = "highest" if highest else "first"
        return f"{words} The {which} image is UNRELIABLE: do not report this barrier."

    @classmethod
    def of(
        cls,
        images: Sequence[Assessment | None],
        energies_eV: Sequence[float],
        on_energy: Sequence[Assessment | None] | None = (),
    ) -> BandAssessment:
        """Build the assessment from those of the images and their energies in eV.

        ``on_energy`` are the assessments of the same images for ``use="energy"``, or
        None if no signal judges energies; by default those of the images count.
        """
        known = [-math.inf if math.isnan(e) else e for e in energies_eV]
        highest = known.index(max(known))
        judged = [i for i, found in enumerate(images) if found is not None]
        # an image without an energy may be the highest
        lost = [i for i in {0, *judged} if math.isnan(energies_eV[i])]
        barrier = _barrier(images, on_energy or images, highest)
        if lost:
            reasons = [f"image {i} has no finite energy" for i in sorted(lost)]
            barrier = Verdict(Level.UNRELIABLE, (*reasons, *barrier.reasons))
        return cls(
            images=tuple(images),
            energies_eV=tuple(energies_eV),
            worst=max(judged, key=lambda i: _badness(images[i], i), default=None),
            highest=highest,
            barrier_eV=math.nan if lost else energies_eV[highest] - energies_eV[0],
            barrier=barrier,
            energies_judged=on_energy is not None,
        )


class Band:
    """The images of a band, judged together.

    Parameters
    ----------
    dynamics : ase optimiser
    neb : ase NEB
        Each image needs a `ReliableCalculator`; images may share one. The two ends may
        also have another calculator with a known energy.

    Attributes
    ----------
    last : Assessment or None
        Assessment of the whole band at the last look, with the readings of the worst
        image.
    seen : BandAssessment or None
        Assessments of all images at the last look.
    """

    def __init__(self, dynamics: Any, neb: Any) -> None:
        self._neb = neb
        count = len(neb.images)
        self._images = [
            Structure(dynamics, partial(_image, neb, index))
            if 0 < index < count - 1 or hasattr(image.calc, "assess")
            else None
            for index, image in enumerate(neb.images)
        ]
        for image in self._judging:
            # ASE and the monitor ask for each image several times in a step
            image.calculator.remember(count + RECENT)
        self.last: Assessment | None = None
        self.seen: BandAssessment | None = None

    @property
    def _judging(self) -> list[Structure]:
        return [image for image in self._images if image is not None]

    @property
    def atoms(self) -> Atoms:
        """The first judged image; all images have the same elements."""
        return self._judging[0].atoms

    @property
    def calculator(self) -> Any:
        """The calculator of the first judged image."""
        return self._judging[0].calculator

    @property
    def finite(self) -> bool:
        """Whether energy and forces of every image were finite at the last look."""
        return all(image.finite for image in self._judging)

    @property
    def energy(self) -> float:
        """Energy of the highest image in eV at the last look."""
        seen = self._seen()
        return seen.energies_eV[seen.highest]

    def energies_now(self) -> list[float]:
        """Return the current energy of each image in eV; NaN if not known."""
        found: list[float] = []
        for image, atoms in zip(self._images, self._neb.images, strict=True):
            found += [_known_energy(atoms)] if image is None else image.energies_now()
        return found

    def look(self, step: int, interval: int) -> Assessment | None:
        """Return the assessment of the band at this step: that of the worst image."""
        found = [None if i is None else i.look(step, interval) for i in self._images]
        energies = [
            _known_energy(atoms) if image is None else image.energy
            for image, atoms in zip(self._images, self._neb.images, strict=True)
        ]
        self.seen = BandAssessment.of(found, energies, self._on_energy(found))
        self.last = _combined(self.seen)
        return self.last

    def _on_energy(
        self, found: Sequence[Assessment | None]
    ) -> list[Assessment | None] | None:
        """Return the assessments for the energy; None if no signal judges it."""
        calculators = [None if i is None else i.calculator for i in self._images]
        known = [c for c in calculators if c is not None]
        if any(uncovered(c.signals, c.policy, "energy") for c in known):
            return None
        return [
            None
            if calculator is None or one is None
            else judged_for(one, "energy", calculator.policy, calculator.signals)
            for one, calculator in zip(found, calculators, strict=True)
        ]

    def snapshot(
        self, step: int, image: int | None = None, *, described: bool = False
    ) -> Atoms:
        """Return an annotated copy of one image, by default the worst.

        ``info["image"]`` is the index of the image; ``described`` is as in `Structure`.

        Raises
        ------
        ValueError
            If the image has no `ReliableCalculator`.
        """
        seen = self._seen()
        index = seen.worst if image is None else image
        index = self._images.index(self._judging[0]) if index is None else index
        structure = self._images[index]
        if structure is None:
            msg = f"image must carry a ReliableCalculator, got image {index} without"
            raise ValueError(msg)
        copy = structure.snapshot(step, described=described)
        copy.info["image"] = index
        return copy

    def unreliable_frames(
        self, step: int
    ) -> Iterator[tuple[Callable[[], Atoms], bool]]:
        """Yield what makes the frame of each UNRELIABLE image, the worst one last.

        The second value says whether the image is the worst one, which decides.
        """
        seen = self._seen()
        bad = [i for i, level in enumerate(seen.levels) if level is Level.UNRELIABLE]
        for index in sorted(bad, key=lambda index: index == seen.worst):
            frame = partial(self.snapshot, step, index, described=True)
            yield frame, index == seen.worst

    def _seen(self) -> BandAssessment:
        if self.seen is None:
            msg = (
                "at least one step must have been run, got none; run the dynamics first"
            )
            raise ValueError(msg)
        return self.seen


def _image(neb: Any, index: int) -> Atoms:
    image: Atoms = neb.images[index]
    return image


def _combined(seen: BandAssessment) -> Assessment | None:
    """Return the assessment of the worst image, with its index in the reasons."""
    if seen.worst is None:
        return None
    worst = seen.images[seen.worst]
    judged = [found for found in seen.images if found is not None]
    if worst is None:
        return None
    reasons = [f"image {seen.worst}: {reason}" for reason in worst.verdict.reasons]
    others = [
        str(index)
        for index, level in enumerate(seen.levels)
        if level is worst.level is not Level.RELIABLE and index != seen.worst
    ]
    if others:
        reasons.append(f"also {worst.level.name}: image {', '.join(others)}")
    skipped = sorted({name for found in judged for name in found.verdict.skipped})
    by_risk = worst.verdict.by_risk
    verdict = Verdict(worst.level, tuple(reasons), tuple(skipped), by_risk)
    return Assessment(worst.readings, verdict)


def _barrier(
    images: Sequence[Assessment | None],
    on_energy: Sequence[Assessment | None],
    highest: int,
) -> Verdict:
    level, reasons = Level.RELIABLE, []
    for index, (found, other) in enumerate(zip(images, on_energy, strict=True)):
        if index in (0, highest):
            if found is None or other is None:
                own, why = Level.SUSPECT, "not judged"
            else:
                own = max(found.level, other.level)
                why = own.name + (" in its energy" if own > found.level else "")
        elif found is not None and found.level is Level.UNRELIABLE:
            own, why = Level.SUSPECT, "UNRELIABLE, so the path may be higher there"
        else:
            continue
        level = max(level, own)
        if own is not Level.RELIABLE:
            reasons.append(f"image {index} is {why}")
    return Verdict(level, tuple(reasons))


def _badness(found: Assessment | None, index: int) -> tuple[float, ...]:
    """Return a sort key: level, then absurd findings, then risk, then early index."""
    if found is None:
        return (-1.0,)
    risks = [math.inf if math.isnan(r.risk) else r.risk for r in found.readings]
    highest = max(risks, default=-math.inf)
    return (float(found.level), float(bool(found.absurd)), highest, -float(index))


def _known_energy(atoms: Atoms) -> float:
    """Return the stored energy of an image in eV; NaN if there is none."""
    results = getattr(atoms.calc, "results", {})
    return float(results.get("energy", math.nan))

"""The card of a probe: its target, boundary, calibration and limits."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from uqcalc.errors import ProbeError
from uqcalc.files.card import FileCard
from uqcalc.files.entries import check_elements, checked
from uqcalc.files.tensorfile import Kind
from uqcalc.former import Former
from uqcalc.policy import Policy, Threshold
from uqcalc.probe.added import Added
from uqcalc.probe.atomshares import AtomShares
from uqcalc.probe.calibration import Calibration
from uqcalc.probe.scope import AtomFloor, Scope
from uqcalc.showing import in_words, shown_in
from uqcalc.targets import TARGETS


if TYPE_CHECKING:
    import torch

_JOINED_SINCE = 3  # earlier joined probes used other input numbers
_CELLS_SINCE = 5  # earlier probes took the number of atoms of a cell for a size
_COMPLETE_SINCE = 4  # since this schema, a card that lacks a learned limit is damaged
FILE = Kind(
    name="probe",
    key="uqcalc_probe",
    error=ProbeError,
    make="fit one with uqcalc.fit",
    otherwise="copy it again, fit one again, or use Probe.from_official for a "
    "checkpoint of the PROBE authors",
    checked_since=4,
    infinite=("joined.limit", "joined.known"),  # infinite where a probe has no scope
    # 5: sizes of molecules only, correction for one system; 6: limit of mean distance;
    # 7: labels added to a prior; 8: shares of atoms in the error of their structure;
    # 9: limit of mean distance by number of elements
    schema=9,
)
ARCHITECTURES = ("joined", "standard", "probe-2026")
JOINED_ARCHITECTURE = "joined"  # attention and other paths
RAW_ARCHITECTURE = "probe-2026"  # published: energy and atom count not standardised


@dataclass(frozen=True, slots=True)
class RegimeCount:
    """Accepted and wrong structures of one regime in the calibration set.

    One structure of each group was used. A structure is accepted if its probability is
    at least the card's ``suspect``, which was fixed before these labels were seen.

    Attributes
    ----------
    groups, accepted, wrong : int
    bound : float or None
        Upper bound on the share of wrong structures among the accepted ones (Clopper &
        Pearson 1934) at the confidence of the guarantee; None without accepted ones.
    elements : list of int
        Atomic numbers in the accepted structures.
    temperature_K : float or None
        Highest temperature of the accepted structures; None unless each states one.
    """

    groups: int
    accepted: int
    wrong: int
    bound: float | None = None
    elements: list[int] = field(default_factory=list)
    temperature_K: float | None = None


@dataclass(frozen=True, slots=True)
class Guarantee:
    """Upper bound on the share of accepted structures that are wrong.

    Take one structure from each new group, drawn like the groups of the calibration
    set. Of the accepted structures, at most a share ``risk`` has an error above
    ``tolerance``. This holds with probability ``confidence`` over the draw of the
    calibration set. If groups differ in size, the share among all accepted structures
    may differ. The bound does not hold for a run that leaves these groups.

    Attributes
    ----------
    cutoff : float
        A structure is accepted if its probability is at least this.
    risk, confidence : float
    groups : int
        Groups of the calibration set; one structure of each was used.
    accepted, wrong : int
        Number of these structures that were accepted, and number accepted but wrong.
    bound : float
        Upper bound on the risk (Clopper & Pearson 1934) at the part of the error
        budget that was spent on it; no larger than ``risk``.
    tolerance : float or None
        A larger error is wrong, in ``unit``; None if labels say only right or wrong.
    unit : str
    boundary : float or None
        The probability is P(error <= boundary), and structures outside the probe's
        scope are rejected. None if the cutoff is on another number.
    regimes : dict of RegimeCount
        The regimes of the calibration set; empty for guarantees of earlier versions.
        The statement of each regime has the confidence of the guarantee by itself.
    """

    cutoff: float
    risk: float
    confidence: float
    groups: int
    accepted: int
    wrong: int
    bound: float
    tolerance: float | None = None
    unit: str = ""
    boundary: float | None = None
    regimes: dict[str, RegimeCount] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shares = (self.cutoff, self.risk, self.confidence, self.bound)
        if not all(0 <= share <= 1 for share in shares):
            msg = (
                "cutoff, risk, confidence and bound of a guarantee must be from 0 to "
                f"1, got {shares}; certify the probe again"
            )
            raise ProbeError(msg)

    @property
    def validated(self) -> dict[str, RegimeCount]:
        """The regimes in which at most a share ``risk`` of accepted ones is wrong."""
        return {
            name: row
            for name, row in self.regimes.items()
            if row.bound is not None and row.bound <= self.risk
        }

    @property
    def coverage(self) -> float:
        """Share of the groups whose structure was accepted."""
        return self.accepted / self.groups

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able form, with coverage and the statement in words."""
        return asdict(self) | {"coverage": self.coverage, "statement": str(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Guarantee:
        """Rebuild from `to_dict`.

        Raises
        ------
        ProbeError
            If an entry is missing, unknown or of another type; the message names it.
        """
        entries = {k: v for k, v in data.items() if k not in {"coverage", "statement"}}
        return cls(
            **checked(
                cls,
                entries,
                "guarantee of a probe",
                ProbeError,
                "certify the probe again",
            )
        )

    def __str__(self) -> str:
        how = "are wrong"
        if self.tolerance is not None:
            how = f"err by more than {in_words(self.tolerance, self.unit)}"
        which = f"probability at least {self.cutoff:.4g}"
        if self.boundary is not None:
            which = (
                f"P(error <= {in_words(self.boundary, self.unit)}) at least "
                f"{self.cutoff:.4g}, within the scope of the probe"
            )
        return (
            f"of one structure from each new group, if accepted ({which}), at "
            f"most {self.risk:.3g} {how}, with confidence {self.confidence:.3g}; "
            f"found: {self.wrong} wrong of {self.accepted} accepted, one structure of "
            f"each of {self.groups} groups (coverage {self.coverage:.3g}, upper bound "
            f"{self.bound:.3g}); it holds for groups drawn like the calibration set, "
            "not for a run that reaches other structures"
        )


_Record = Calibration | AtomShares | Scope | AtomFloor | Added
_NESTED: dict[str, type[_Record]] = {
    "calibration": Calibration,
    "atom_calibration": Calibration,
    "atom_shares": AtomShares,
    "scope": Scope,
    "atom_floor": AtomFloor,
    "added": Added,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Card(FileCard):
    """Record of a probe: labels, backbone, calibration and meaning of the output.

    The entries of every card are described in `uqcalc.files.card.FileCard`. The list of
    ``elements`` is empty if they are unknown (imported).

    Attributes
    ----------
    target : str
        Quantity whose error the probe predicts (`uqcalc.Labels`).
    boundary : float
        Errors up to it are reliable, in ``unit``.
    percentile : float or None
        Percentile of the training errors that set the boundary; None if it was given.
    architecture : str
        "joined", "standard" (attention alone), or "probe-2026" (the published network,
        inputs not standardised).
    shape : dict
        Sizes of the network (`uqcalc.probe.network.Shape`).
    joined : dict or None
        Sizes of the other paths (`uqcalc.probe.stacked.StackedShape`); None without
        them.
    calibration : Calibration
        Maps a score to P(reliable). A pair (slope, intercept) is converted.
    atom_boundary : float or None
        |ΔF_i| up to it is reliable, in eV/Å; None without force labels.
    atom_calibration : Calibration or None
        Of the score of an atom alone.
    atom_shares : AtomShares or None
        Shares of atoms in the error of their structure. P of an atom follows from them
        if they are there, else from ``atom_calibration``.
    atom_floor : AtomFloor or None
        Lower limit on the log-odds of the least reliable atom of a right structure.
    scope : Scope or None
        Limits of the calibration set; None if unknown. With ``added`` labels those of
        the prior, sizes and charges of both.
    added : Added or None
        Calibration and scope of labels that were added to this probe.
    promise : dict or None
        Stored form of the guarantee of this probe; `guarantee` reads it.
    held_out : list of [share, logit]
        The ``share`` of held-out groups with the largest P(reliable) has at least this
        logit; empty if unknown.
    offsets : dict
        eV per element (by atomic number): level of theory of the labels against that of
        the backbone.
    suspect, unreliable : float
        Cutoffs on P(reliable), below which a prediction is SUSPECT, UNRELIABLE.
    sizes : (smallest, largest)
        Atoms per labelled structure; empty if unknown.
    atom_energies : dict
        eV per element (by atomic number) subtracted from the predicted energy.
    description : str
        Text for the reader of the card.
    """

    file: ClassVar[Kind] = FILE

    target: str
    boundary: float
    architecture: str
    shape: dict[str, Any]
    sizes: list[int]
    percentile: float | None = None
    joined: dict[str, Any] | None = None
    calibration: Calibration = field(default_factory=Calibration)
    atom_boundary: float | None = None
    atom_calibration: Calibration | None = None
    atom_shares: AtomShares | None = None
    atom_floor: AtomFloor | None = None
    scope: Scope | None = None
    added: Added | None = None
    promise: dict[str, Any] | None = None
    held_out: list[list[float]] = field(default_factory=list)
    offsets: dict[str, float] = field(default_factory=dict)
    suspect: float = 0.8
    unreliable: float = 0.5
    atom_energies: dict[str, float] = field(default_factory=dict)
    description: str = ""
    schema: int = FILE.schema

    def __post_init__(self) -> None:
        FileCard.__post_init__(self)
        given: object = self.calibration
        if isinstance(given, (tuple, list)):
            slope, intercept = given
            calibration = Calibration(float(slope), float(intercept))
            object.__setattr__(self, "calibration", calibration)
        if self.target not in TARGETS:
            msg = f"target must be one of {sorted(TARGETS)}, got {self.target!r}"
            raise ProbeError(msg)
        if self.architecture not in ARCHITECTURES:
            msg = (
                f"architecture of a probe must be one of {ARCHITECTURES}, got "
                f"{self.architecture!r}; upgrade uqcalc"
            )
            raise ProbeError(msg)
        if not (math.isfinite(self.boundary) and self.boundary > 0):
            msg = (
                "boundary of a probe must be finite and positive, got "
                f"{self.boundary} {self.unit}; fit the probe with another boundary"
            )
            raise ProbeError(msg)
        self._check_energies_and_sizes()
        if not 0 <= self.unreliable <= self.suspect <= 1:
            msg = (
                "cutoffs on P(reliable) must satisfy 0 <= unreliable <= suspect <= 1, "
                f"got unreliable={self.unreliable} and suspect={self.suspect}"
            )
            raise ProbeError(msg)

    def _check_energies_and_sizes(self) -> None:
        """Raise ProbeError for impossible energies of elements, or sizes."""
        for name in ("offsets", "atom_energies"):
            given = getattr(self, name)
            known = [z for z in given if str(z).isascii() and str(z).isdecimal()]
            numbers = [int(z) for z in known]
            if len(known) < len(given) or not all(map(math.isfinite, given.values())):
                numbers = [0]
            check_elements(numbers, f"{name} of a probe", ProbeError, FILE.otherwise)
        if self.sizes and not (len(self.sizes) == 2 and self.sizes[0] >= 1):
            msg = (
                "sizes of a probe must be the smallest and the largest number of "
                f"atoms, got {self.sizes}; {FILE.otherwise}"
            )
            raise ProbeError(msg)

    @property
    def unit(self) -> str:
        """Unit of the boundary."""
        return TARGETS[self.target].unit

    @property
    def meaning(self) -> str:
        """Text "P(error <= boundary)" with unit, in milli-units (meV) below 1."""
        return self._meaning_at(self.boundary)

    def _meaning_at(self, boundary: float, error: str | None = None) -> str:
        unit, factor = shown_in(self.unit)
        value = boundary * factor
        if value < 1.0 and unit == self.unit:  # small errors are usually given in meV
            value, unit = 1000 * value, f"m{unit}"
        return f"P({error or TARGETS[self.target].meaning} <= {value:.3g} {unit})"

    def region_meaning(self, atoms: int, *, worst: bool) -> str:
        """Return the meaning of the probability of a region of so many ``atoms``.

        With ``worst`` it is the probability of its least reliable atom.
        """
        noun = "1 atom" if atoms == 1 else f"{atoms} atoms"
        if worst and self.atom_boundary is not None:
            each = self._meaning_at(self.atom_boundary, "force error of an atom")
            return f"smallest {each} of {noun}"
        return f"{self.meaning} over {noun}"

    @property
    def question(self) -> str:
        """Text "P(error <= boundary)", in the unit of `uqcalc.showing.shown_in`."""
        meaning = TARGETS[self.target].meaning
        return f"P({meaning} <= {in_words(self.boundary, self.unit)})"

    @property
    def guarantee(self) -> Guarantee | None:
        """The guarantee of this probe; None without one."""
        return None if self.promise is None else Guarantee.from_dict(self.promise)

    promised = Former("guarantee")

    @property
    def sized(self) -> bool:
        """Whether P depends on the number of atoms of a periodic cell."""
        return self.schema < _CELLS_SINCE or TARGETS[self.target].grows

    @property
    def feature_dim(self) -> int:
        """Width of the backbone features."""
        return int(self.shape["features"])

    @property
    def charges(self) -> bool:
        """Whether the probe needs atomic charges."""
        return bool(self.shape["charges"])

    def element_energies(self) -> NDArray[np.float64]:
        """Return ``atom_energies`` by atomic number, (119,) in eV."""
        energies = np.zeros(119)
        for z, energy in self.atom_energies.items():
            energies[int(z)] = energy
        return energies

    def policy(self, signal: str = "probe") -> Policy:
        """Return the policy of the stored cutoffs, for the signal of this probe."""
        return Policy([Threshold(signal, 1 - self.suspect, 1 - self.unreliable)])

    def guarantee_policy(self, signal: str = "probe") -> Policy:
        """Return the policy of the guarantee; see `uqcalc.Policy.from_guarantee`.

        Parameters
        ----------
        signal : str
            Name of the signal of this probe, if a calculator has several.

        Raises
        ------
        ProbeError
            If the card has no guarantee about P(error <= boundary).
        """
        guarantee = self.guarantee
        if guarantee is None or guarantee.boundary is None:
            msg = (
                "probe must have a guarantee about its probability, got none; make one "
                "on frames that are new to it: uqcalc.certify (uqcalc certify)"
            )
            raise ProbeError(msg)
        beyond = 1 - guarantee.cutoff
        limits = (beyond, max(beyond, 1 - self.unreliable))
        meaning = self._meaning_at(guarantee.boundary)
        return Policy([Threshold(signal, *limits, guarantee=meaning)])

    promise_policy = Former("guarantee_policy")

    def _check_complete(self) -> None:
        """Raise ProbeError if a learned limit is missing: P would be over-trusted."""
        floor = self.atom_floor is not None
        learned = self.training.get("atom_floor_learned", self.atom_calibration)
        missing = [
            name
            for name, lost in {
                "scope": self.scope is None,
                "atom_calibration": self.atom_boundary and not self.atom_calibration,
                "atom_floor": learned and not floor,
                "atom_shares": self.training.get("atom_shares_learned")
                and not self.atom_shares,
            }.items()
            if lost
        ]
        if missing:
            msg = (
                f"card of a probe must have the entries {missing}, got None; the file "
                "is damaged, take an earlier copy or fit the probe again"
            )
            raise ProbeError(msg)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able form, with the unit."""
        records = {
            name: None if record is None else record.to_dict()
            for name, record in (
                ("calibration", self.calibration),
                ("atom_calibration", self.atom_calibration),
                ("atom_shares", self.atom_shares),
                ("scope", self.scope),
                ("atom_floor", self.atom_floor),
                ("added", self.added),
            )
        }
        return asdict(self) | records | {"unit": self.unit}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Build the card from the output of `to_dict`.

        Raises
        ------
        ProbeError
            If this version cannot read the schema, if an entry is missing, unknown or
            impossible, or if the unit differs.
        """
        entries = dict(data)
        unit = entries.pop("unit", None)
        card = cls(**cls._entries(entries | {"schema": FILE.schema_of(entries)}))
        card.guarantee  # noqa: B018  (raises if damaged)
        if card.schema >= _COMPLETE_SINCE and card.architecture == JOINED_ARCHITECTURE:
            card._check_complete()
        if unit != card.unit:
            msg = (
                f"boundary of a probe for {card.target} must be in {card.unit}, got "
                f"{unit!r}; fit the probe again"
            )
            raise ProbeError(msg)
        return card

    @classmethod
    def _entries(cls, data: dict[str, Any]) -> dict[str, Any]:
        joined = data.get("architecture") == JOINED_ARCHITECTURE
        if joined and data["schema"] < _JOINED_SINCE:
            msg = (
                f"schema of a {JOINED_ARCHITECTURE!r} probe must be at least "
                f"{_JOINED_SINCE}, got {data['schema']}: this version of uqcalc reads "
                "its numbers in another way; fit the probe again"
            )
            raise ProbeError(msg)
        if "calibration" not in data:
            msg = (
                f"card of a probe must have the entries ['calibration'], got "
                f"{sorted(data)}; {FILE.otherwise}"
            )
            raise ProbeError(msg)
        nested = {name: data.pop(name) for name in _NESTED if name in data}
        records = {name: _record(name, value) for name, value in nested.items()}
        return super(Card, cls)._entries(data) | records

    def write(
        self, path: str | os.PathLike[str], tensors: Mapping[str, torch.Tensor]
    ) -> Path:
        """Write this card and ``tensors`` to one file, and return its path.

        The schema stays: an earlier card may lack entries that the newest schema needs.

        Raises
        ------
        RecordError, ProbeError
            As `uqcalc.files.tensorfile.Kind.write`.
        """
        return FILE.write(path, tensors, self.to_dict())

    def _facts(self) -> list[str]:
        sizes = " to ".join(str(size) for size in self.sizes) or "any number of"
        facts = [self.question, *FileCard._facts(self), f"{sizes} atoms"]
        return [*facts, f"architecture {self.architecture}"]


def _record(name: str, value: object) -> object:
    """Return a record of a card; a pair of numbers (until schema 2) is unchanged."""
    if value is None and name != "calibration":
        return None
    if isinstance(value, (list, tuple)) and name == "calibration":
        what = "calibration of a probe"
        pair = checked(_Pair, {"values": value}, what, ProbeError, FILE.otherwise)
        return pair["values"]
    return _NESTED[name].from_dict(value)


@dataclass(frozen=True)
class _Pair:
    """Form of a calibration until schema 2."""

    values: tuple[float, float]

"""The entries, the checks and the reading that the cards of all our files share.

This module does not import torch at load time, so that `uqcalc info` answers at once.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from ase.data import chemical_symbols

from uqcalc.files.entries import check_elements, checked
from uqcalc.files.tensorfile import Kind


if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class FileCard:
    """The card of a file with tensors: what it was fitted on, and for which backbone.

    A subclass adds the entries of its own kind of file, and sets ``file``. Every wrong
    entry raises ``file.error``, both when a card is made and when it is read.

    Attributes
    ----------
    file : Kind
        The kind of file that has this card.
    fingerprint : str
        Fingerprint of the backbone (``Backbone.fingerprint``).
    elements : list of int
        Atomic numbers in the fit.
    training : dict
        Counts and settings of the fit.
    report : dict
        Scores on structures that were held out of the fit.
    uqcalc_version : str
        Version of uqcalc that made the fit; empty if unknown.
    schema : int
        Version of the entries.
    """

    file: ClassVar[Kind]

    fingerprint: str
    elements: list[int]
    training: dict[str, Any] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)
    uqcalc_version: str = ""
    schema: int = 1

    def __post_init__(self) -> None:
        kind = self.file
        what = f"elements of a {kind.name}"
        check_elements(self.elements, what, kind.error, kind.otherwise)

    @property
    def symbols(self) -> str:
        """The chemical symbols of the elements, in order; empty if none are known."""
        return ", ".join(chemical_symbols[z] for z in self.elements)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able form; `from_dict` reads it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Build the card from the output of `to_dict`.

        A card without a schema has schema 1.

        Raises
        ------
        UqcalcError
            Of the class ``file.error``, if this version cannot read the schema, or if
            an entry is missing, unknown, of another type or impossible; the message
            names the entry.
        """
        schema = cls.file.schema_of(data)
        return cls(**cls._entries(dict(data) | {"schema": schema}))

    @classmethod
    def _entries(cls, data: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments of the class from the entries of a file."""
        kind = cls.file
        what = f"card of a {kind.name}"
        return checked(cls, data, what, kind.error, kind.otherwise)

    @classmethod
    def of(cls, path: str | os.PathLike[str]) -> Self:
        """Return the card of a file without its tensors; torch is not imported.

        Raises
        ------
        UqcalcError
            As `read`. The numbers in the tensors are not checked.
        """
        return cls.from_dict(cls.file.card(path))

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> tuple[Self, dict[str, torch.Tensor]]:
        """Return the card and the tensors of a file.

        Raises
        ------
        UqcalcError
            Of the class ``file.error``: see `Kind.read` and `from_dict`.
        """
        tensors, entries = cls.file.read(path)
        return cls.from_dict(entries), tensors

    def write(
        self, path: str | os.PathLike[str], tensors: Mapping[str, torch.Tensor]
    ) -> Path:
        """Write this card and ``tensors`` to one file, and return its path.

        The file has the newest schema. A failed write leaves no partial file.

        Raises
        ------
        RecordError, UqcalcError
            As `Kind.write`.
        """
        schema = max(self.schema, self.file.schema)
        return self.file.write(path, tensors, self.to_dict() | {"schema": schema})

    def _facts(self) -> list[str]:
        """Return the part of `str` after the backbone."""
        return [f"elements {self.symbols or 'not stated'}"]

    def __str__(self) -> str:
        facts = "; ".join(self._facts())
        return f"{self.file.name} for {self.fingerprint}: {facts}"

"""The sections of a run file for asking a reference and for rewinding."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationInfo, field_validator

from uqcalc.errors import RecordError
from uqcalc.references.named import FromText
from uqcalc.runfile.sections import Count, Positive, Probability, Section, folder_of
from uqcalc.watching.asker import CALLS, SPACING, Ask
from uqcalc.watching.rewinding import Rewind


class AskSection(Section):
    """``ask``: the reference that ``policy.on_unreliable: ask`` asks.

    Attributes
    ----------
    reference : str
        A name such as ``gfn2-xtb``, ``module:function`` or ``file.py:function``, as for
        ``uqcalc label``; the function returns an ASE calculator.
    max_calls : int
        Largest number of calls in the whole run.
    spacing : int
        Smallest number of steps from one call to the next.
    """

    reference: Annotated[str, Field(min_length=1)]
    max_calls: Count = CALLS
    spacing: Count = SPACING

    @field_validator("reference")
    @classmethod
    def _known(cls, value: str, info: ValidationInfo) -> str:
        _maker(value, folder_of(info))
        return value

    def settings(self, labelled: Path, folder: Path) -> Ask:
        """Return the settings of the monitor, with a new calculator.

        Files of the reference go to a folder beside ``labelled`` if the function takes
        ``directory``.

        Raises
        ------
        RecordError
            If there is no such function.
        MissingExtraError
            If the package of a named reference is missing.
        """
        make = _maker(self.reference, folder).find()
        options: dict[str, Any] = {}
        if "directory" in inspect.signature(make).parameters:
            place = labelled.with_name(f"{labelled.stem}_work")
            place.mkdir(exist_ok=True)
            options["directory"] = str(place)
        return Ask(
            make(**options),
            labelled,
            self.max_calls,
            self.spacing,
            name=self.reference,
        )


def _maker(text: str, folder: Path) -> FromText:
    """Return what makes the reference; a file is relative to the run file."""
    place, _, function = text.rpartition(":")
    try:
        if place.endswith(".py"):
            return FromText(f"{folder / place}:{function}")
        return FromText(text)
    except RecordError as error:
        msg = str(error)
        raise ValueError(msg) from error


class RewindSection(Section):
    """``rewind``: how far and how often ``policy.on_unreliable: rewind`` goes back.

    Attributes
    ----------
    max_rewinds : int
    back_fs : float
        Smallest time between the state and the alarm, fs.
    refresh : float
        Share of the momenta that is drawn anew.
    seed : int
    """

    max_rewinds: Count = 3
    back_fs: Positive = 100.0
    refresh: Probability = 0.5
    seed: Annotated[int, Field(ge=0)] = 0

    def settings(self) -> Rewind:
        """Return the settings of the monitor."""
        return Rewind(self.max_rewinds, self.back_fs, self.refresh, self.seed)

"""Which frames of a trajectory are judged, and which judged frames are written."""

from __future__ import annotations

import math
import operator
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from uqcalc.errors import RecordError
from uqcalc.records import Level


if TYPE_CHECKING:
    from ase import Atoms


_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "!=": operator.ne,
    "<": operator.lt,
    ">": operator.gt,
    "=": operator.eq,
}
_CONDITION = re.compile(r"\s*([A-Za-z_][\w.]*)\s*(<=|>=|!=|==?|<|>)\s*(\S+)\s*")
_SHORT = {"reliability": "probe_reliability", "level": "reliability_level"}
_LEVEL = "reliability_level"


def parse_index(text: str) -> slice:
    """Return the slice of ``"10:200:5"``, ``"::10"``, ``"-100:"`` or ``"7"``.

    Raises
    ------
    RecordError
        If the text is something else, or the step is not positive.
    """
    parts = text.strip().split(":")
    try:
        numbers = [int(part) if part.strip() else None for part in parts]
    except ValueError:
        numbers = []
    if len(numbers) == 1 and numbers[0] is not None:
        first = numbers[0]
        return slice(first, None if first == -1 else first + 1)
    step = numbers[2] if len(numbers) == 3 else None
    if len(numbers) in {2, 3} and (step is None or step > 0):
        return slice(*numbers)
    msg = (
        "index must be a number or START:STOP:STEP with a positive step, got "
        f"{text!r}; for example 100:, -50: or ::10"
    )
    raise RecordError(msg)


def resolved(index: slice, path: str | os.PathLike[str]) -> tuple[slice, int, int]:
    """Return a slice that counts from the start, its first index and its step.

    Raises
    ------
    RecordError
        If it counts from the end, and the frames cannot be counted quickly
        (`uqcalc.files.structures.count_frames`).
    """
    from uqcalc.files.structures import count_frames  # slow import

    step = index.step or 1
    ends = [bound for bound in (index.start, index.stop) if bound is not None]
    if any(bound < 0 for bound in ends):
        count = count_frames(path)
        if count is None:
            msg = (
                "index must count from the first frame for a file in this format, got "
                f"{index.start}:{index.stop} for {path}; use numbers of at least 0"
            )
            raise RecordError(msg)
        start, stop, step = index.indices(count)
        return slice(start, stop, step), start, step
    return index, index.start or 0, step


@dataclass(frozen=True, slots=True)
class Condition:
    """A condition on an annotated frame, such as ``probe_reliability<0.2``.

    Attributes
    ----------
    name : str
        An entry of ``info``, in the unit of the signal.
    sign : str
        One of ``<``, ``<=``, ``>``, ``>=``, ``=``, ``!=``.
    value : float or Level
        A level for the name ``reliability_level``: RELIABLE < SUSPECT < UNRELIABLE.
    """

    name: str
    sign: str
    value: float | Level

    @classmethod
    def parse(cls, text: str) -> Condition:
        """Return the condition of a text.

        ``reliability`` and ``level`` are short for ``probe_reliability`` and
        ``reliability_level``.

        Raises
        ------
        RecordError
            If the text has another form.
        """
        found = _CONDITION.fullmatch(text)
        if found is None:
            msg = (
                "condition must be NAME<VALUE with one of < <= > >= = !=, got "
                f"{text!r}; for example reliability<0.2 or level>=SUSPECT"
            )
            raise RecordError(msg)
        name, sign, value = found.groups()
        name, sign = _SHORT.get(name, name), "=" if sign == "==" else sign
        return cls(name, sign, _level(value) if name == _LEVEL else _number(value))

    def __str__(self) -> str:
        value = self.value.name if isinstance(self.value, Level) else f"{self.value:g}"
        return f"{self.name}{self.sign}{value}"

    def holds(self, frame: Atoms) -> bool:
        """Return whether an annotated frame fulfils the condition.

        It is fulfilled by every frame that could not be evaluated, and where the
        quantity is NaN.

        Raises
        ------
        RecordError
            If an evaluated frame does not have the quantity.
        """
        from uqcalc.annotating.copies import read_error  # slow import

        if read_error(frame) is not None:
            return True
        found = frame.info.get(self.name)
        if found is None:
            numbers = sorted(
                key for key, value in frame.info.items() if isinstance(value, float)
            )
            msg = (
                "condition must name a result that each frame has, got "
                f"{self.name!r}; this frame has {numbers} and level"
            )
            raise RecordError(msg)
        if self.name == _LEVEL:
            return _OPERATORS[self.sign](Level(int(found)), self.value)
        number = float(found)
        return math.isnan(number) or _OPERATORS[self.sign](number, self.value)


def _level(text: str) -> Level:
    names = [level.name for level in Level]
    if text.upper() not in names:
        msg = f"level must be one of {names}, got {text!r}"
        raise RecordError(msg)
    return Level[text.upper()]


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if math.isnan(number):
        msg = f"value of a condition must be a number, got {text!r}"
        raise RecordError(msg)
    return number

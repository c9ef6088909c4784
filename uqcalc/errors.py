"""Exceptions: each says what must be how, what it got instead, and the remedy."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from uqcalc.records import Assessment


class UqcalcError(Exception):
    """Root of every exception that uqcalc raises on purpose."""


class BackboneError(UqcalcError):
    """A calculator cannot be tapped, or its tap did not fire in this very pass."""


class ProbeError(UqcalcError):
    """A probe file is unusable, or belongs to another backbone."""


class SignalError(UqcalcError):
    """A fitted signal is unusable, or belongs to another backbone."""


class ModelError(UqcalcError):
    """The name of a potential means nothing, or its weights are out of reach."""


class LabelError(UqcalcError):
    """Labelled frames are missing labels, or hold labels that cannot be right."""


class LabelWarning(UserWarning):
    """Labels can be used, but look as if they were not what they should be."""


class FileWarning(UserWarning):
    """A file can be used or written, but not with all that was asked of it."""


class RecordError(UqcalcError):
    """An event log or an annotation is unreadable, or belongs to another run."""


class SourceError(RecordError):
    """A trajectory cannot be read to its end; what came before is annotated.

    Attributes
    ----------
    source, reason : str
    summary : `uqcalc.AnnotationSummary`
        Of all that could be read.
    """

    def __init__(self, source: str, reason: str, summary: Any) -> None:
        self.source, self.reason, self.summary = source, reason, summary
        super().__init__(
            f"source must be readable to its end, got {source} ({reason}) after "
            f"{summary.frames} frames, which are in {summary.target}; mend it or "
            "wait for it to grow, and run again to continue"
        )

    def __reduce__(self) -> tuple[type[SourceError], tuple[Any, ...]]:
        """Survive process pools: rebuild from its parts."""
        return type(self), (self.source, self.reason, self.summary)


class RunFileError(UqcalcError):
    """A run file cannot be read or asks for what cannot be; it names every problem.

    Attributes
    ----------
    path : str
    problems : tuple of str
        One for each entry at fault: where it is, what it must be, and what it was.
    """

    def __init__(self, path: str, problems: Sequence[str]) -> None:
        self.path, self.problems = path, tuple(problems)
        count = "a problem" if len(problems) == 1 else f"{len(problems)} problems"
        lines = "".join(f"\n  {problem}" for problem in problems)
        super().__init__(f"{path} has {count}:{lines}")

    def __reduce__(self) -> tuple[type[RunFileError], tuple[str, tuple[str, ...]]]:
        """Survive process pools: rebuild from path and problems."""
        return type(self), (self.path, self.problems)


# Extra -> the first release of Python for which it installs nothing.
_NOT_SINCE = {"orb": (3, 13)}
# Extra -> where to install it.
_WHERE = {"sevennet": ", in an environment without mace-torch,"}


class MissingExtraError(UqcalcError, ImportError):
    """An optional dependency is absent; the message names the extra to install.

    Where the extra installs nothing for this release of Python, the message names the
    releases that it is for.
    """

    def __init__(self, what: str, package: str, extra: str) -> None:
        self.extra = extra
        where = _WHERE.get(extra, "")
        remedy = f'install it{where} with: pip install "uqcalc[{extra}]"'
        end = _NOT_SINCE.get(extra)
        if end is not None and sys.version_info[:2] >= end:
            this = ".".join(map(str, sys.version_info[:2]))
            last = f"{end[0]}.{end[1] - 1}"
            remedy = (
                f"uqcalc supports it with Python 3.11 to {last}, and this is Python "
                f"{this}: make an environment with Python {last}, and there {remedy}"
            )
        super().__init__(f"{what} needs {package}, which is not installed; {remedy}")


class UnreliableError(UqcalcError, RuntimeError):
    """A monitored run met predictions that the policy calls UNRELIABLE.

    Attributes
    ----------
    step : int
        Step at which the monitor acted.
    assessment : Assessment
        Readings and verdict of that very geometry.
    """

    def __init__(self, step: int, assessment: Assessment) -> None:
        self.step = step
        self.assessment = assessment
        reasons = "; ".join(assessment.verdict.reasons) or "no reason given"
        super().__init__(f"step {step} is {assessment.level.name}: {reasons}")

    def __reduce__(self) -> tuple[type[UnreliableError], tuple[int, Assessment]]:
        """Survive process pools: rebuild from step and assessment."""
        return type(self), (self.step, self.assessment)

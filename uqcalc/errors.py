"""Exceptions; each message gives the requirement, the value and a remedy."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from uqcalc.records import Assessment


class UqcalcError(Exception):
    """Base class of all exceptions that uqcalc raises on purpose."""


class BackboneError(UqcalcError):
    """A model cannot be tapped, gave no features, or cannot evaluate a structure."""


class ProbeError(UqcalcError):
    """A probe file is unusable, or belongs to another backbone."""


class SignalError(UqcalcError):
    """A fitted signal is unusable, or belongs to another backbone."""


class ModelError(UqcalcError):
    """The name of a potential is unknown, or its weights cannot be obtained."""


class LabelError(UqcalcError):
    """Labels are missing or cannot be right; or a target or boundary is invalid."""


class LabelWarning(UserWarning):
    """Labels can be used, but look wrong."""


class FileWarning(UserWarning):
    """A file is read or written, but a part of the request cannot be met."""


class RecordError(UqcalcError):
    """An event log or an annotation is unreadable, or belongs to another run."""


class SourceError(RecordError):
    """A trajectory cannot be read to its end; the frames before are annotated.

    Attributes
    ----------
    source, reason : str
    summary : `uqcalc.types.AnnotationSummary`
        Summary of the frames that could be read.
    """

    def __init__(self, source: str, reason: str, summary: Any) -> None:
        self.source, self.reason, self.summary = source, reason, summary
        super().__init__(
            f"source must be readable to its end, got {source} ({reason}) after "
            f"{summary.frames} frames, which are in {summary.target}; repair the "
            "file, or wait until it is complete, and run again to continue"
        )

    def __reduce__(self) -> tuple[type[SourceError], tuple[Any, ...]]:
        """Support pickling (process pools): rebuild from the arguments."""
        return type(self), (self.source, self.reason, self.summary)


class LoopError(UqcalcError):
    """A command of a learning loop failed or did not write its file."""


class RunFileError(UqcalcError):
    """A run file cannot be read or has invalid entries; all problems are listed.

    Attributes
    ----------
    path : str
    problems : tuple of str
        One text for each invalid entry: its place, the requirement and the value.
    """

    def __init__(self, path: str, problems: Sequence[str]) -> None:
        self.path, self.problems = path, tuple(problems)
        count = "a problem" if len(problems) == 1 else f"{len(problems)} problems"
        lines = "".join(f"\n  {problem}" for problem in problems)
        super().__init__(f"{path} has {count}:{lines}")

    def __reduce__(self) -> tuple[type[RunFileError], tuple[str, tuple[str, ...]]]:
        """Support pickling (process pools): rebuild from path and problems."""
        return type(self), (self.path, self.problems)


# Extra -> first Python release for which the extra installs nothing.
_NOT_SINCE = {"orb": (3, 13)}
# Extra -> first Python release for which it installs something.
_SINCE = {"torchsim": (3, 12)}
# Extra -> environment to install the extra in.
_APART = ", in an environment without mace-torch,"
_WHERE = dict.fromkeys(("sevennet", "fairchem", "mattersim"), _APART)


class MissingExtraError(UqcalcError, ImportError):
    """An optional dependency is absent; the message names the extra to install.

    If the extra installs nothing for this Python release, the message names the
    supported releases.
    """

    def __init__(self, what: str, package: str, extra: str) -> None:
        self.extra = extra
        where = _WHERE.get(extra, "")
        remedy = f'install it{where} with: pip install "uqcalc[{extra}]"'
        here = sys.version_info[:2]
        end, start = _NOT_SINCE.get(extra), _SINCE.get(extra)
        known = ""
        if end is not None and here >= end:
            best = f"{end[0]}.{end[1] - 1}"
            known = f"3.11 to {best}"
        elif start is not None and here < start:
            best = ".".join(map(str, start))
            known = f"{best} and newer"
        if known:
            this = ".".join(map(str, here))
            remedy = (
                f"uqcalc supports it with Python {known}, and this is Python "
                f"{this}: make an environment with Python {best}, and in it {remedy}"
            )
        super().__init__(f"{what} needs {package}, which is not installed; {remedy}")


class UnreliableError(UqcalcError, RuntimeError):
    """A monitored run met predictions that the policy calls UNRELIABLE.

    Attributes
    ----------
    step : int
        Step at which the monitor acted.
    assessment : Assessment
        Readings and verdict of the geometry at this step.
    """

    def __init__(self, step: int, assessment: Assessment) -> None:
        self.step = step
        self.assessment = assessment
        reasons = "; ".join(assessment.verdict.reasons) or "no reason given"
        super().__init__(f"step {step} is {assessment.level.name}: {reasons}")

    def __reduce__(self) -> tuple[type[UnreliableError], tuple[int, Assessment]]:
        """Support pickling (process pools): rebuild from step and assessment."""
        return type(self), (self.step, self.assessment)

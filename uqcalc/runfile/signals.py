"""The sections of a run file for signals beside the probe."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, ValidationInfo, field_validator

from uqcalc.runfile.sections import Count, Positive, Section, folder_of


def _of_a_file(value: str | None, info: ValidationInfo) -> str | None:
    if value is not None and not (folder_of(info) / value).is_file():
        msg = "must be a file that exists, relative to the run file"
        raise ValueError(msg)
    return value


class _LimitedSection(Section):
    """Limits in eV/Å on the risk of a signal, and how often the signal is read."""

    suspect_eV_per_A: Positive
    unreliable_eV_per_A: Positive
    interval: Count = 1

    @field_validator("unreliable_eV_per_A")
    @classmethod
    def _above_suspect(cls, value: float, info: ValidationInfo) -> float:
        suspect = info.data.get("suspect_eV_per_A")
        if suspect is not None and value < suspect:
            msg = f"must be at least suspect_eV_per_A, which is {suspect}"
            raise ValueError(msg)
        return value

    @property
    def limits(self) -> tuple[float, float]:
        """Limits of SUSPECT and UNRELIABLE, eV/Å."""
        return self.suspect_eV_per_A, self.unreliable_eV_per_A


class ForceDeltaSection(_LimitedSection):
    """``force_delta``: watch the disagreement of direct and conservative forces.

    Attributes
    ----------
    suspect_eV_per_A, unreliable_eV_per_A : float
        Limits, eV/Å, beyond which a frame is SUSPECT, UNRELIABLE; from
        `uqcalc.calibrate_threshold` or `uqcalc.error_curve`.
    interval : int
        Read at the first of every so many steps.
    head : str or None
        A head made by ``uqcalc distill``, for models without direct forces.
    """

    head: str | None = Field(default=None)

    _exists = field_validator("head")(_of_a_file)


class FunctionalSpreadSection(_LimitedSection):
    """``functional_spread``: watch the spread of a learned perturbation.

    Attributes
    ----------
    perturbation : str
        File made by ``uqcalc perturb`` for the model of the run.
    suspect_eV_per_A, unreliable_eV_per_A : float
        Limits, eV/Å, beyond which a frame is SUSPECT, UNRELIABLE; from
        `uqcalc.calibrate_threshold` or `uqcalc.error_curve`.
    interval : int
        Read at the first of every so many steps.
    members : int
        Members of a reading; each costs one pass of the model.
    """

    perturbation: str
    members: Annotated[int, Field(ge=2)] = 16

    _exists = field_validator("perturbation")(_of_a_file)

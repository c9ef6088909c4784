"""The section of a run file for the signal Force Delta."""

from __future__ import annotations

from pydantic import Field, ValidationInfo, field_validator

from uqcalc.runfile.sections import Count, Positive, Section, folder_of


class ForceDeltaSection(Section):
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

    suspect_eV_per_A: Positive
    unreliable_eV_per_A: Positive
    interval: Count = 1
    head: str | None = Field(default=None)

    @field_validator("unreliable_eV_per_A")
    @classmethod
    def _above_suspect(cls, value: float, info: ValidationInfo) -> float:
        suspect = info.data.get("suspect_eV_per_A")
        if suspect is not None and value < suspect:
            msg = f"must be at least suspect_eV_per_A, which is {suspect}"
            raise ValueError(msg)
        return value

    @field_validator("head")
    @classmethod
    def _exists(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and not (folder_of(info) / value).is_file():
            msg = "must be a file that exists, relative to the run file"
            raise ValueError(msg)
        return value

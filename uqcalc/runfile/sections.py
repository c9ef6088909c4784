"""The sections of a run file: the meaning, type and default of each key.

Units are part of the names. A key that the file leaves out has the default given here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
)


Positive = Annotated[float, Field(gt=0)]
Probability = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]


def folder_of(info: ValidationInfo) -> Path:
    """Return the folder that the paths of the file are relative to."""
    folder: Path = (info.context or {}).get("folder", Path())
    return folder


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _number_or_ramp(value: Any) -> Any:
    """Refuse other types with one message; pydantic validates the types afterwards."""
    ends = value if isinstance(value, list) and len(value) == 2 else [value]
    if value is not None and not all(_is_number(t) and 0 < t < 1e6 for t in ends):
        msg = "must be a number above 0, or [start, end] for a linear ramp"
        raise ValueError(msg)
    return tuple(value) if isinstance(value, list) else value


Temperature = Annotated[
    float | tuple[float, float] | None, BeforeValidator(_number_or_ramp)
]


class Section(BaseModel):
    """Base of all sections: unknown keys are refused, and no value is converted."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False
    )


class MdSection(Section):
    """``md``: molecular dynamics.

    Attributes
    ----------
    ensemble : {"nve", "nvt", "npt"}
        Velocity Verlet; Langevin; Langevin with a moving cell (BAOAB, J. Chem.
        Phys. 120, 11432 (2004)).
    steps : int
    timestep_fs : float
    temperature_K : float or (start, end)
        Of the heat bath and of new velocities; a pair is a linear ramp over the steps.
    friction_per_fs : float
        Of the heat bath, 1/fs; nvt and npt only. Default 0.01.
    pressure_GPa, barostat_fs, cell_shape : float, float, {"fixed", "free"}
        npt only: pressure, time constant of the cell, and whether only its volume
        changes. Defaults 0, 1000 and fixed.
    velocities : {"new", "keep"}
        Drawn at the (first) temperature, or those in the structure's file.
    seed : int
        Of the velocities and of the heat bath.
    """

    ensemble: Literal["nve", "nvt", "npt"] = "nvt"
    velocities: Literal["new", "keep"] = "new"
    steps: Count
    timestep_fs: Positive = 0.5
    temperature_K: Temperature = Field(default=None, validate_default=True)
    friction_per_fs: Positive | None = Field(default=None, validate_default=True)
    pressure_GPa: float | None = Field(default=None, validate_default=True)
    barostat_fs: Positive | None = Field(default=None, validate_default=True)
    cell_shape: Literal["fixed", "free"] | None = Field(
        default=None, validate_default=True
    )
    seed: Annotated[int, Field(ge=0)] = 0

    @field_validator("temperature_K")
    @classmethod
    def _needed_or_useless(cls, value: Any, info: ValidationInfo) -> Any:
        known = info.data.keys() >= {"ensemble", "velocities"}
        if known and info.data["ensemble"] == "nve":
            if isinstance(value, tuple):
                msg = (
                    "must be one number for nve, which has no thermostat; use nvt "
                    "for a ramp"
                )
                raise ValueError(msg)
            if value is None and info.data["velocities"] == "new":
                msg = "must be given for velocities: new; or write velocities: keep"
                raise ValueError(msg)
        elif known and value is None:
            msg = f"must be given for {info.data['ensemble']}"
            raise ValueError(msg)
        return value

    @field_validator("friction_per_fs", "pressure_GPa", "barostat_fs", "cell_shape")
    @classmethod
    def _of_the_ensemble(cls, value: Any, info: ValidationInfo) -> Any:
        name = str(info.field_name)
        ensembles, default = _ENSEMBLE_KEYS[name]
        ensemble = info.data.get("ensemble")
        if ensemble in ensembles:
            return default if value is None else value
        if value is not None and ensemble is not None:
            msg = (
                f"must be left out for {ensemble}; it is for {' and '.join(ensembles)}"
            )
            raise ValueError(msg)
        return value

    def temperature_at(self, step: int) -> float:
        """Return the temperature of the heat bath at ``step`` in K."""
        if isinstance(self.temperature_K, tuple):
            start, end = self.temperature_K
            return start + (end - start) * min(step / self.steps, 1.0)
        return 0.0 if self.temperature_K is None else self.temperature_K


_ENSEMBLE_KEYS: dict[str, tuple[tuple[str, ...], Any]] = {
    "friction_per_fs": (("nvt", "npt"), 0.01),
    "pressure_GPa": (("npt",), 0.0),
    "barostat_fs": (("npt",), 1000.0),
    "cell_shape": (("npt",), "fixed"),
}


class RelaxSection(Section):
    """``relax``: a geometry optimisation.

    Attributes
    ----------
    optimizer : {"BFGS", "LBFGS", "FIRE"}
    fmax_eV_per_A : float
        Largest force at convergence, eV/Å.
    steps : int
        Largest number of steps.
    cell : bool
        Relax the cell, too.
    pressure_GPa : float
        With ``cell``: the pressure to relax at.
    """

    optimizer: Literal["BFGS", "LBFGS", "FIRE"] = "BFGS"
    fmax_eV_per_A: Positive = 0.05
    steps: Count = 500
    cell: bool = False
    pressure_GPa: float = 0.0

    @field_validator("pressure_GPa")
    @classmethod
    def _with_cell(cls, value: float, info: ValidationInfo) -> float:
        if info.data.get("cell") is False:
            msg = "must be left out unless cell: true is given"
            raise ValueError(msg)
        return value


class PolicySection(Section):
    """``policy``: when a frame is SUSPECT or UNRELIABLE, and when to act.

    Attributes
    ----------
    suspect, unreliable : float
        Cutoffs on P(reliable), below which a frame is SUSPECT, UNRELIABLE; by default
        the probe's own.
    promise : bool
        A frame is RELIABLE only where the guarantee on the probe's card covers it.
    window, fraction : int, float
        Act as soon as this fraction of the last ``window`` steps is UNRELIABLE.
    patience : int
        Act after so many UNRELIABLE frames in a row. Without window and patience: half
        of the last 50 fs, or three frames in a row of a relaxation.
    on_unreliable : {"halt", "warn", "harvest", "rewind", "ask"}
        Stop in the same step; only write to the log; continue and keep frames that
        differ from each other; go back (section ``rewind``); or ask a reference
        (section ``ask``): see `uqcalc.Monitor`.
    max_harvest : int
        Largest number of frames to keep with "harvest". Default 50.
    bond_change_fs : float
        ``md`` only: act, too, if bonds have stayed broken or new for so many fs.
    halting_guarantee : str
        ``md`` only: file from `uqcalc.certify_halting`. Its limits are the policy, and
        its statement goes to the log.
    """

    suspect: Probability | None = None
    unreliable: Probability | None = None
    promise: bool | None = None
    window: Count | None = None
    fraction: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None, validate_default=True
    )
    patience: Count | None = None
    on_unreliable: Literal["halt", "warn", "harvest", "rewind", "ask"] = "halt"
    max_harvest: Count | None = Field(default=None, validate_default=True)
    bond_change_fs: Positive | None = None
    halting_guarantee: str | None = None

    @field_validator("unreliable")
    @classmethod
    def _below_suspect(cls, value: float | None, info: ValidationInfo) -> float | None:
        suspect = info.data.get("suspect")
        if value is not None and suspect is not None and value > suspect:
            msg = f"must be at most suspect, which is {suspect}"
            raise ValueError(msg)
        return value

    @field_validator("promise")
    @classmethod
    def _or_suspect(cls, value: Any, info: ValidationInfo) -> Any:
        if value and info.data.get("suspect") is not None:
            msg = "must be left out where suspect is given: the guarantee has a cutoff"
            raise ValueError(msg)
        return value

    @field_validator("fraction")
    @classmethod
    def _with_window(cls, value: float | None, info: ValidationInfo) -> float | None:
        if "window" in info.data and (info.data["window"] is None) != (value is None):
            msg = "must be given together with window"
            raise ValueError(msg)
        return value

    @field_validator("patience")
    @classmethod
    def _or_window(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and info.data.get("window") is not None:
            msg = "must be left out where window and fraction are given"
            raise ValueError(msg)
        return value

    @field_validator("max_harvest")
    @classmethod
    def _of_a_harvest(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and info.data.get("on_unreliable") not in (
            None,
            "harvest",
        ):
            msg = "must be left out unless on_unreliable is harvest"
            raise ValueError(msg)
        return value

    @field_validator("halting_guarantee")
    @classmethod
    def _instead_of_cutoffs(cls, value: str, info: ValidationInfo) -> str:
        if not (folder_of(info) / value).is_file():
            msg = "must be a file that exists, relative to the run file"
            raise ValueError(msg)
        cutoffs = ("suspect", "unreliable", "promise")
        if given := [name for name in cutoffs if info.data.get(name) is not None]:
            msg = f"must be left out where {given[0]} is given: it has its own limits"
            raise ValueError(msg)
        if info.data.get("on_unreliable") not in (None, "halt"):
            msg = "must be left out unless on_unreliable is halt: it is about halts"
            raise ValueError(msg)
        return value


class OutputSection(Section):
    """``outputs``: files, next to the run file unless the path says otherwise.

    ``{name}`` stands for the run file's own name without its ending. `null` leaves out
    a file; the log and the last geometry are always written.

    Attributes
    ----------
    log : str
        Event log, one record a step; the restart file beside it is named after it.
    flagged, max_flagged : str, int
        File of UNRELIABLE frames, and the largest number of them.
    trajectory : str
        Annotated frames, every ``interval`` steps and the last one.
    labelled : str
        Frames that the reference has evaluated; only with ``on_unreliable: ask``, by
        default ``{name}_labelled.xyz``.
    last : str
        The last geometry so far, annotated, with its velocities.
    interval : int
        Steps from one frame of the trajectory to the next, and from one save of the
        state for a continued run.
    """

    log: str = "{name}.jsonl"
    flagged: str | None = "{name}_flagged.xyz"
    max_flagged: Count = 100
    labelled: str | None = None
    trajectory: str | None = None
    last: str = "{name}_last.xyz"
    interval: Count = 10

    @field_validator("log", "flagged", "labelled", "trajectory", "last")
    @classmethod
    def _a_file(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is None:
            return value
        path = folder_of(info) / value
        if not path.parent.is_dir() or path.is_dir():
            msg = "must be a file in a folder that exists"
            raise ValueError(msg)
        if info.field_name != "log" and not value.endswith((".xyz", ".extxyz")):
            msg = "must end in .xyz or .extxyz, the format that keeps annotations"
            raise ValueError(msg)
        return value

    def named(self, name: str) -> OutputSection:
        """Return a copy with the names filled in."""
        files = {k: v.replace("{name}", name) for k, v in self.files().items()}
        return self.model_copy(update=files)

    def files(self) -> dict[str, str]:
        """Return what is written, by key."""
        names = ("log", "flagged", "labelled", "trajectory", "last")
        return {k: v for k in names if (v := getattr(self, k)) is not None}

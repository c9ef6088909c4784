"""Checks of the settings of a `Monitor` before it opens any file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Protocol

from uqcalc.policy import Policy
from uqcalc.watching.asker import Ask
from uqcalc.watching.harvest import Harvest
from uqcalc.watching.rewinding import Rewind
from uqcalc.watching.trigger import Trigger


ACTIONS = ("halt", "raise", "warn", "harvest", "rewind", "ask")
MODES = ("continue", "append", "new")


def check_paths(**paths: str | os.PathLike[str] | None) -> None:
    """Refuse the same file for two outputs (ValueError)."""
    seen: dict[Path, str] = {}
    for name, path in paths.items():
        if path is None:
            continue
        place = Path(path).absolute()
        if place in seen:
            msg = (
                f"{seen[place]} and {name} must be different files, got {path} for both"
            )
            raise ValueError(msg)
        seen[place] = name


class HaltingStatement(Protocol):
    """A guarantee about halts in time; `uqcalc.types.HaltingGuarantee` is one."""

    def check(self, policy: Policy, trigger: Trigger, timestep_fs: float) -> None:
        """Raise ValueError if a monitor with these settings is not covered."""


def check_guarantee(
    guarantee: HaltingStatement | None,
    on_unreliable: object,
    policy: Policy,
    trigger: Trigger,
    timestep_fs: float | None,
) -> None:
    """Refuse a guarantee that does not cover this monitor (ValueError)."""
    if guarantee is None:
        return
    if timestep_fs is None or on_unreliable not in ("halt", "raise"):
        msg = (
            "guarantee must be for molecular dynamics that is halted, got "
            f"on_unreliable={on_unreliable!r} and a time step of {timestep_fs} fs; "
            'leave out guarantee, or choose on_unreliable="halt"'
        )
        raise ValueError(msg)
    guarantee.check(policy, trigger, timestep_fs)


def check_settings(on_unreliable: object, mode: str) -> None:
    """Refuse an unknown action or mode (ValueError)."""
    known = callable(on_unreliable) or isinstance(on_unreliable, Rewind | Ask)
    if not known and on_unreliable not in ACTIONS:
        msg = (
            "on_unreliable must be 'halt', 'raise', 'warn', 'harvest', 'rewind', "
            f"'ask', a Rewind, an Ask or a callable, got {on_unreliable!r}"
        )
        raise ValueError(msg)
    if mode not in MODES:
        msg = f"mode must be 'continue', 'append' or 'new', got {mode!r}"
        raise ValueError(msg)


def harvest_of(
    on_unreliable: object,
    max_harvest: int,
    flagged: str | os.PathLike[str] | None,
    *,
    band: bool,
) -> Harvest | None:
    """Return the harvest of a run, None if frames are not harvested.

    Raises
    ------
    ValueError
        If there is no file for the frames, or if the run moves a band of images.
    """
    harvest = Harvest(max_harvest)
    if on_unreliable != "harvest":
        return None
    if flagged is None:
        msg = (
            "flagged must be given with on_unreliable='harvest', got None; name the "
            "file for the frames"
        )
        raise ValueError(msg)
    if band:
        msg = (
            "on_unreliable='harvest' must have a run of one structure, got a band of "
            "images; use 'warn', which flags every UNRELIABLE image"
        )
        raise ValueError(msg)
    return harvest


def ask_of(
    on_unreliable: object,
    reference: Any,
    labelled: str | os.PathLike[str] | None,
    *,
    band: bool,
) -> Ask | None:
    """Return the settings with which a run asks a reference; None for other actions.

    Raises
    ------
    ValueError
        If reference or file are missing, or given for another action, or if the run
        moves a band of images.
    """
    given = {"reference": reference, "labelled": labelled}
    extra = [name for name, value in given.items() if value is not None]
    if on_unreliable != "ask":
        if extra:
            msg = (
                f"{extra[0]} must be left out unless on_unreliable is 'ask', got "
                f"on_unreliable={on_unreliable!r}; uqcalc.Ask has both"
            )
            raise ValueError(msg)
        settings = on_unreliable if isinstance(on_unreliable, Ask) else None
    elif reference is None or labelled is None:
        missing = next(name for name, value in given.items() if value is None)
        msg = (
            f"{missing} must be given with on_unreliable='ask', got None; pass an ASE "
            "calculator, and name the file for the frames that it evaluates"
        )
        raise ValueError(msg)
    else:
        settings = Ask(reference, labelled)
    if settings is not None and band:
        msg = (
            "on_unreliable='ask' must have a run of one structure, got a band of "
            "images; use 'warn', and label the flagged images with uqcalc.label"
        )
        raise ValueError(msg)
    return settings

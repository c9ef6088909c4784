"""Probes on the command line: files, or the names of potentials with a probe."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from uqcalc.models.named import PROBE_FILES, SHIPPED_PROBES


if TYPE_CHECKING:
    from uqcalc.labels.labels import Labels
    from uqcalc.probe.card import Card
    from uqcalc.probe.probe import Probe


def is_shipped(name: str) -> bool:
    """Return whether a name means a shipped probe; a file of this name is first."""
    return name in PROBE_FILES and not Path(name).exists()


@contextmanager
def shipped_file(name: str) -> Iterator[Path]:
    """Yield the path for ``name``: that of the file itself, or of a shipped probe."""
    if not is_shipped(name):
        yield Path(name)
        return
    with as_file(files("uqcalc") / "data" / PROBE_FILES[name]) as path:
        yield path


def _known(value: str | None) -> str | None:
    if value is not None and not is_shipped(value) and not Path(value).is_file():
        msg = (
            f"probe must be a file or one of {', '.join(PROBE_FILES)}, got "
            f"{value!r}; fit one with uqcalc fit"
        )
        raise typer.BadParameter(msg)
    return value


def _all_known(values: list[str] | None) -> list[str] | None:
    for value in values or ():
        _known(value)
    return values


def load_probe(name: str) -> Probe:
    """Return the probe in a file, or the one that ships under this name.

    Raises
    ------
    ProbeError
        If the file is not a probe.
    """
    from uqcalc.probe.probe import Probe

    with shipped_file(name) as path:
        return Probe.load(path)


def labels_of(probe: Probe, keys: tuple[str, str, str], group: str | None) -> Labels:
    """Return labels with these keys, of the target of a probe.

    ``keys`` are those of forces, energy and stress.
    """
    from uqcalc.labels.labels import Labels

    forces_key, energy_key, stress_key = keys
    return Labels(
        probe.card.target,
        energy_key=energy_key,
        forces_key=forces_key,
        stress_key=stress_key,
        group_key=group,
    )


def model_of(probe: str, given: str | None) -> str:
    """Return the model of a probe: the given one, or one that is recognised.

    A model with a shipped probe is recognised by the fingerprint on its card.

    Raises
    ------
    typer.BadParameter
        If no model is given, and the probe is for another one.
    ProbeError
        If the file is not a probe.
    """
    if given is not None:
        return given
    wanted = card_of(probe).fingerprint
    core = wanted.partition("-")[0]
    for name, (first, *_) in SHIPPED_PROBES.items():
        with as_file(files("uqcalc") / "data" / first) as path:
            known = card_of(str(path)).fingerprint
        if known.partition("-")[0] == core and _same_model(known, wanted):
            return name
    kind = wanted.partition(":")[0]
    sample = {"mace": "mace:FILE", "orb": "orb:NAME"}.get(kind, "NAME")
    msg = (
        f"--model must be given for a probe of {wanted}, because only "
        f"{', '.join(SHIPPED_PROBES)} are recognised; add --model {sample}"
    )
    raise typer.BadParameter(msg, param_hint="'--model'")


def card_of(probe: str) -> Card:
    """Return the card of a probe, without torch."""
    from uqcalc.probe.card import Card

    with shipped_file(probe) as path:
        return Card.of(path)


def _same_model(one: str, other: str) -> bool:
    if one == other:
        return True
    from uqcalc.backbones.fingerprint import same_model

    return same_model(one, other)


_PROBES = (
    "Probe: a file, or the name of one that comes with uqcalc: "
    f"{', '.join(PROBE_FILES)}."
)
ProbeArgument = Annotated[
    str, typer.Argument(metavar="PROBE", callback=_known, help=_PROBES)
]
ProbeOption = Annotated[
    str | None,
    typer.Option("--probe", metavar="PROBE", callback=_known, help=_PROBES),
]
PriorOption = Annotated[
    str | None,
    typer.Option(
        "--prior",
        metavar="PROBE",
        callback=_known,
        help=(
            "Add the labels to this probe, instead of fitting a new one: a file, or "
            f"one of {', '.join(PROBE_FILES)}. Target and potential are those of the "
            "probe, and its boundary by default."
        ),
    ),
]
ProbesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--probe",
        metavar="PROBE",
        callback=_all_known,
        help=f"{_PROBES} Repeat the option for probes of several targets.",
    ),
]
ProbesArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[PROBE]...",
        callback=_all_known,
        help=f"{_PROBES} Give one or several; none to score a perturbation alone.",
    ),
]

"""The file of a learning loop: the input of `uqcalc loop`."""

from __future__ import annotations

import os
import string
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    Field,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from uqcalc.errors import RunFileError
from uqcalc.runfile.file import parsed_yaml
from uqcalc.runfile.sections import Count, Section, folder_of


TRAIN = ("data", "model_in", "model_out", "seed", "round")
REFIT = ("labels", "model", "probe_out", "seed", "round")


def _command(value: str | None, known: tuple[str, ...], needed: str) -> str | None:
    if value is None:
        return None
    try:
        used = {name for _, name, _, _ in string.Formatter().parse(value) if name}
    except ValueError as error:
        msg = f"must have placeholders in braces ({error}); write {{{{ for a brace"
        raise ValueError(msg) from error
    if unknown := sorted(used - {*known}):
        msg = f"must use the placeholders {', '.join(known)}, not {', '.join(unknown)}"
        raise ValueError(msg)
    if needed not in used:
        msg = f"must contain {{{needed}}}, the path of the file that it writes"
        raise ValueError(msg)
    return value


class LoopFile(Section):
    """A whole loop file. Paths are relative to it.

    Attributes
    ----------
    run : str
        Run file (`uqcalc run`) of each round; its model and probe start the loop.
    reference : str
        As for `uqcalc.label`; the path of a file is relative to this file.
    train : str
        Command that trains the potential, without a shell. Placeholders: ``{data}``
        (all training labels so far, extended XYZ), ``{model_in}`` (name or path of the
        model of this round), ``{model_out}`` (file to write; further files beside it
        stay there), ``{seed}``, ``{round}``.
    refit : str or None
        Command that makes a probe for the new model. Placeholders: ``{labels}`` (all
        labels so far that were not used for training; ``info["uqcalc_event"]`` is
        their group), ``{model}`` (name of the new model), ``{probe_out}`` (file to
        write), ``{seed}``, ``{round}``.
    model : str
        Name under which uqcalc opens a trained file, with ``{model_out}``.
    suffix : str
        Ending of a trained file.
    data : str or None
        Labelled frames that the first model was trained on; they stay in ``{data}``.
    probe_data : str or None
        Labelled frames that no model is trained on; they stay in ``{labels}``. Frames
        of one run need the same ``info["uqcalc_event"]``.
    runs : int
        Runs in each round, with different seeds of the dynamics.
    rounds, labels : int
        Largest number of rounds, and of labels in a round.
    budget : int or None
        Largest number of reference calculations in all rounds.
    held_out : float
        Share of the events whose labels are kept from the training, for ``refit``.
    workers : int
        Processes of the reference.
    seed : int
    folder : str
        Folder of the rounds; ``{name}`` is the name of this file without ending.
    """

    run: str
    reference: Annotated[str, Field(min_length=1)]
    train: str
    refit: str | None = None
    model: Annotated[str, Field(min_length=1)] = "mace:{model_out}"
    suffix: Annotated[str, Field(pattern=r"^\.\w+$")] = ".model"
    data: str | None = None
    probe_data: str | None = None
    runs: Count = 1
    rounds: Count = 5
    labels: Count = 30
    budget: Count | None = None
    held_out: Annotated[float, Field(ge=0, lt=1)] = 0.2
    workers: Annotated[int, Field(ge=0)] = 1
    seed: Annotated[int, Field(ge=0)] = 0
    folder: str = "{name}_rounds"
    _folder: Path = PrivateAttr(default=Path())
    _name: str = PrivateAttr(default="loop")

    def model_post_init(self, context: Any) -> None:
        """Remember the folder that paths are relative to."""
        self._folder = (context or {}).get("folder", Path())
        self._name = (context or {}).get("name", "loop")

    @field_validator("run", "data", "probe_data")
    @classmethod
    def _exists(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and not (folder_of(info) / value).is_file():
            msg = "must be a file that exists, relative to the loop file"
            raise ValueError(msg)
        return value

    @field_validator("train")
    @classmethod
    def _trains(cls, value: str) -> str:
        _command(value, TRAIN, "model_out")
        return value

    @field_validator("refit")
    @classmethod
    def _refits(cls, value: str | None) -> str | None:
        return _command(value, REFIT, "probe_out")

    @property
    def place(self) -> Path:
        """Folder of the loop file, in which commands run."""
        return self._folder

    @property
    def rounds_folder(self) -> Path:
        """Folder of the rounds."""
        return self._folder / self.folder.replace("{name}", self._name)

    @property
    def reference_at(self) -> str:
        """The reference, with the path of a file made absolute."""
        place, colon, function = self.reference.rpartition(":")
        where = str(self.at(place)) if place.endswith(".py") else place
        return f"{where}{colon}{function}"

    def at(self, name: str) -> Path:
        """Return a path of this file as an absolute path."""
        return self._folder / name


def read_loop_file(path: str | os.PathLike[str]) -> LoopFile:
    """Read and validate a loop file (YAML).

    Raises
    ------
    RunFileError
        With all problems of the file.
    """
    file = Path(path)
    data = parsed_yaml(file)
    context = {"folder": file.absolute().parent, "name": file.stem}
    try:
        return LoopFile.model_validate(data, context=context)
    except ValidationError as error:
        problems = []
        for entry in error.errors():
            where = ".".join(map(str, entry["loc"]))
            if entry["type"] == "extra_forbidden":
                known = ", ".join(LoopFile.model_fields)
                problems.append(f"{where}: unknown key; known here: {known}")
            else:
                problems.append(
                    f"{where}: {entry['msg'].removeprefix('Value error, ')}"
                )
        raise RunFileError(str(path), problems) from error

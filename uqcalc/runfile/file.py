"""Read and validate a run file, before the run starts."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BeforeValidator,
    Field,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from uqcalc.errors import RunFileError
from uqcalc.models.named import PROBE_FILES
from uqcalc.runfile.actions import AskSection, RewindSection
from uqcalc.runfile.sections import (
    Count,
    MdSection,
    OutputSection,
    PolicySection,
    RelaxSection,
    Section,
    folder_of,
)
from uqcalc.runfile.signals import ForceDeltaSection, FunctionalSpreadSection


LABELLED = "{name}_labelled.xyz"
# Largest size of a run file in bytes; a long one with comments has two thousand.
LARGEST = 200_000


def _name_or_names(value: Any) -> Any:
    """Refuse other types with one message; pydantic validates the types afterwards."""
    names = value if isinstance(value, list) and value else [value]
    if value is not None and not all(isinstance(name, str) for name in names):
        msg = "must be the name of a file, or a list of such names"
        raise ValueError(msg)
    return value


Names = Annotated[str | list[str] | None, BeforeValidator(_name_or_names)]


# Models whose name contains a file, and models whose name may be a file.
_FILE_KINDS = ("mace", "metatomic", "orb")
_NAME_OR_FILE = ("aimnet", "uma", "upet")


class RunFile(Section):
    """A whole run file; it must have exactly one of ``md`` and ``relax``.

    All other keys have defaults. Paths are stored as written; `at` makes them absolute.

    Attributes
    ----------
    structure : str
        Any file that ASE reads.
    species : list of str or None
        Element of each type in order, for LAMMPS files, which number their types.
    frame : int
        Which frame of it; the last by default.
    repeat : list of int
        Copies of the cell along its three vectors.
    model : str
        As `uqcalc.open_model` takes it.
    probe : str, list of str or None
        Files, or names of probes that come with uqcalc, each of another target. By
        default those that come with the model; models without one need it, or
        ``force_delta`` or ``functional_spread``.
    probe_atoms : list of int or None
        Indices of the atoms that the probe's verdict is about, after ``repeat``; by
        default all atoms.
    device : str
    dtype : {"float32", "float64"} or None
    """

    structure: str
    species: list[str] | None = None
    frame: int = -1
    repeat: list[Count] = Field(
        default_factory=lambda: [1, 1, 1], min_length=3, max_length=3
    )
    model: Annotated[str, Field(min_length=1)] = "default"
    probe: Names = None
    probe_atoms: list[Annotated[int, Field(ge=0)]] | None = Field(
        default=None, min_length=1
    )
    device: Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")] = "auto"
    dtype: Literal["float32", "float64"] | None = None
    md: MdSection | None = None
    relax: RelaxSection | None = Field(default=None, validate_default=True)
    force_delta: ForceDeltaSection | None = None
    functional_spread: FunctionalSpreadSection | None = None
    policy: PolicySection = PolicySection()
    ask: AskSection | None = Field(default=None, validate_default=True)
    rewind: RewindSection | None = Field(default=None, validate_default=True)
    outputs: OutputSection = Field(OutputSection(), validate_default=True)
    _folder: Path = PrivateAttr(default=Path())
    _name: str = PrivateAttr(default="run file")

    def model_post_init(self, context: Any) -> None:
        """Remember the folder that paths are relative to."""
        self._folder = (context or {}).get("folder", Path())
        self._name = (context or {}).get("file", "run file")

    @field_validator("structure")
    @classmethod
    def _exists(cls, value: str, info: ValidationInfo) -> str:
        if not (folder_of(info) / value).is_file():
            msg = "must be a file that exists, relative to the run file"
            raise ValueError(msg)
        return value

    @field_validator("probe")
    @classmethod
    def _all_exist(cls, value: Any, info: ValidationInfo) -> Any:
        for name in _listed(value):
            if name not in PROBE_FILES and not (folder_of(info) / name).is_file():
                msg = "must be a file that exists, relative to the run file"
                raise ValueError(msg)
        return value

    @field_validator("relax")
    @classmethod
    def _one_task(
        cls, value: RelaxSection | None, info: ValidationInfo
    ) -> RelaxSection | None:
        if "md" in info.data and (info.data["md"] is None) == (value is None):
            both = value is not None
            msg = (
                "must be left out where md is given: a run file has one task"
                if both
                else "must be given where md is left out"
            )
            raise ValueError(msg)
        return value

    @field_validator("policy")
    @classmethod
    def _of_dynamics(cls, value: PolicySection, info: ValidationInfo) -> PolicySection:
        for name in ("bond_change_fs", "halting_guarantee"):
            if getattr(value, name) is not None and info.data.get("relax") is not None:
                msg = f"{name} must be left out with relax: it is for md"
                raise ValueError(msg)
        return value

    @field_validator("ask", "rewind")
    @classmethod
    def _of_the_action(cls, value: Any, info: ValidationInfo) -> Any:
        policy, name = info.data.get("policy"), str(info.field_name)
        if policy is None:
            return value
        chosen = policy.on_unreliable == name
        if value is not None and not chosen:
            msg = f"must be left out unless policy.on_unreliable is {name}"
            raise ValueError(msg)
        if chosen and name == "ask" and value is None:
            msg = "must be given where policy.on_unreliable is ask: name its reference"
            raise ValueError(msg)
        if chosen and name == "rewind" and info.data.get("relax") is not None:
            msg = "must be left out with relax: only molecular dynamics goes back"
            raise ValueError(msg)
        return value

    @field_validator("outputs")
    @classmethod
    def _distinct(cls, value: OutputSection, info: ValidationInfo) -> OutputSection:
        policy = info.data.get("policy")
        if policy is not None and policy.on_unreliable == "ask":
            value = value.model_copy(update={"labelled": value.labelled or LABELLED})
        elif policy is not None and value.labelled is not None:
            msg = "labelled must be left out unless policy.on_unreliable is ask"
            raise ValueError(msg)
        named = value.named((info.context or {}).get("name", "run"))
        inputs = {"the run file": str((info.context or {}).get("file", ""))}
        inputs["structure"] = info.data.get("structure") or ""
        for count, name in enumerate(_listed(info.data.get("probe"))):
            inputs["probe" if count == 0 else f"probe {count + 1}"] = name
        guarantee = None if policy is None else policy.halting_guarantee
        inputs["policy.halting_guarantee"] = guarantee or ""
        if (spread := info.data.get("functional_spread")) is not None:
            inputs["functional_spread.perturbation"] = spread.perturbation
        seen: dict[Path, str] = {}
        for key, name in (inputs | named.files()).items():
            if not name:
                continue
            path = (folder_of(info) / name).resolve()
            if path in seen:
                msg = f"{key} must name another file than {seen[path]}"
                raise ValueError(msg)
            seen[path] = key
        return named

    @field_validator("outputs")
    @classmethod
    def _of_a_harvest(cls, value: OutputSection, info: ValidationInfo) -> OutputSection:
        policy = info.data.get("policy")
        harvests = policy is not None and policy.on_unreliable == "harvest"
        if harvests and value.flagged is None:
            msg = "flagged must be a file where on_unreliable is harvest, not null"
            raise ValueError(msg)
        return value

    @property
    def path(self) -> Path:
        """Where this file is."""
        return self._folder / self._name

    @property
    def probes(self) -> list[str]:
        """Paths of the probe files, or names of probes of the package."""
        places = {name: self.at(name) for name in _listed(self.probe)}
        return [str(path) if path.is_file() else name for name, path in places.items()]

    def at(self, name: str) -> Path:
        """Return a path of this file as an absolute path."""
        return self._folder / name

    @property
    def model_file(self) -> Path | None:
        """Path of the file that the name of the model contains; None without one."""
        kind, _, detail = self.model.partition(":")
        if kind == "orb":  # orb:NAME:FILE
            detail = detail.partition(":")[2]
        elif kind == "uma":  # uma:NAME:TASK or uma:FILE:TASK
            detail = detail.partition(":")[0]
        file = self.at(detail)
        named = kind in _FILE_KINDS or (kind in _NAME_OR_FILE and file.is_file())
        return file if detail and named else None

    def model_at(self) -> str:
        """Return the name of the model, with the path of a file made absolute."""
        if (file := self.model_file) is None:
            bare = self.at(self.model)
            return str(bare) if bare.is_file() else self.model
        kind, _, detail = self.model.partition(":")
        name, colon, rest = detail.partition(":")
        if kind == "orb":
            return f"orb:{name}:{file}"
        return f"{kind}:{file}{colon}{rest}" if kind == "uma" else f"{kind}:{file}"

    def read_files(self) -> dict[str, list[Path]]:
        """Return the files that decide the verdicts of the run, by key.

        The structure and the reference of ``ask`` are not among them.
        """
        places = [self.at(name) for name in _listed(self.probe)]
        delta, spread = self.force_delta, self.functional_spread
        single = {
            "halting_guarantee": self.policy.halting_guarantee,
            "perturbation": None if spread is None else spread.perturbation,
            "head": None if delta is None else delta.head,
        }
        found = {key: [self.at(name)] for key, name in single.items() if name}
        found["model"] = [] if self.model_file is None else [self.model_file]
        found["probe"] = places
        existing = {k: [p for p in paths if p.is_file()] for k, paths in found.items()}
        return {key: paths for key, paths in existing.items() if paths}

    def echo(self) -> dict[str, Any]:
        """Return the whole file with its defaults, JSON-able."""
        return self.model_dump(mode="json", exclude_none=True)


def _listed(probe: str | list[str] | None) -> list[str]:
    return [probe] if isinstance(probe, str) else probe or []


def read_run_file(path: str | os.PathLike[str]) -> RunFile:
    """Read and validate a run file (YAML).

    Raises
    ------
    RunFileError
        With all problems of the file.

    Examples
    --------
    A complete file::

        structure: ethanol.xyz
        md:
          ensemble: nvt
          temperature_K: [300, 600]
          timestep_fs: 0.5
          steps: 2000
        policy:
          on_unreliable: halt
        outputs:
          trajectory: ethanol_frames.xyz
          interval: 20
    """
    file = Path(path)
    data = parsed_yaml(file)
    folder = file.absolute().parent
    context = {"folder": folder, "name": file.stem, "file": file.name}
    try:
        return RunFile.model_validate(data, context=context)
    except ValidationError as error:
        problems = [_problem(entry) for entry in error.errors()]
        raise RunFileError(str(path), problems) from error


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """Plain YAML without aliases, in which a key may not be given twice.

    A few lines of nested aliases could fill any memory.
    """

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.get_event()
            raise yaml.MarkedYAMLError(
                problem=f"alias *{event.anchor} must be replaced by its value",
                problem_mark=event.start_mark,
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:  # noqa: FBT001, FBT002
        seen = set()
        for key in (k for k, _ in node.value if isinstance(k, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"key {key.value} must be given once, got twice",
                    problem_mark=key.start_mark,
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def parsed_yaml(file: Path) -> dict[str, Any]:
    """Return the keys and values of a YAML file.

    Raises
    ------
    RunFileError
        If it is missing, too long, not YAML, or not lines of key: value.
    """
    if not file.is_file():
        raise RunFileError(str(file), ["must be a file that exists"])
    size = file.stat().st_size
    if size > LARGEST:
        problem = f"must be at most {LARGEST} bytes, got {size}: this is not a run file"
        raise RunFileError(str(file), [problem])
    try:
        data = yaml.load(file.read_bytes(), Loader=_Loader)
    except RecursionError as error:
        problem = "must be sections of key: value, got sections nested too deeply"
        raise RunFileError(str(file), [problem]) from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = "" if mark is None else f"line {mark.line + 1}: "
        problem = f"{where}{error.problem or error.context}; write key: value"
        raise RunFileError(str(file), [problem]) from error
    except yaml.YAMLError as error:
        raise RunFileError(str(file), ["must be text in UTF-8"]) from error
    if not isinstance(data, dict):
        problem = f"must be lines of key: value, got {_short(data)}"
        raise RunFileError(str(file), [problem])
    sections = {name for (name,) in filter(None, _SECTIONS)}
    return {k: {} if v is None and k in sections else v for k, v in data.items()}


_SECTIONS: Mapping[tuple[Any, ...], type[Section]] = {
    (): RunFile,
    ("md",): MdSection,
    ("relax",): RelaxSection,
    ("force_delta",): ForceDeltaSection,
    ("functional_spread",): FunctionalSpreadSection,
    ("policy",): PolicySection,
    ("ask",): AskSection,
    ("rewind",): RewindSection,
    ("outputs",): OutputSection,
}
_WORDS = {
    "bool_type": "must be true or false",
    "dict_type": "must be a section of its own with key: value below it",
    "float_type": "must be a number",
    "int_type": "must be a whole number",
    "list_type": "must be a list such as [2, 2, 1]",
    "model_type": "must be a section of its own with key: value below it",
    "string_type": "must be text",
}
_PHRASES = {
    "Input should be": "must be",
    "List should have": "must have",
    " after validation": "",
    "greater than or equal to": "at least",
    "less than or equal to": "at most",
}
_REMEDIES = {
    "float_type": "; write it without quotes, and 1.0e-3 for 1e-3 (text to YAML)",
    "int_type": "; write it without quotes",
}


def _problem(entry: Mapping[str, Any]) -> str:
    """Return an error of pydantic as text: place, requirement and value."""
    where, value = entry["loc"], entry["input"]
    path, kind = ".".join(map(str, where)), entry["type"]
    if kind in {"extra_forbidden", "invalid_key"}:
        return f"{path}: unknown key; {_nearest(where)}"
    if kind == "missing":
        return f"{path}: must be given"
    words = _WORDS.get(kind) or entry["msg"].removeprefix("Value error, ")
    for theirs, ours in _PHRASES.items():
        words = words.replace(theirs, ours)
    if value is None or isinstance(value, (dict, Section)):
        return f"{path}: {words}"
    remedy = _REMEDIES.get(kind, "") if isinstance(value, str) else ""
    return f"{path}: {words}, got {_short(value)}{remedy}"


def _nearest(where: tuple[Any, ...]) -> str:
    """Return the known key most similar to an unknown one, also of other sections."""
    key, here = str(where[-1]), where[:-1]
    known = {name: name for name in _SECTIONS[here].model_fields}
    elsewhere = {
        name: ".".join((*section, name))
        for section, model in _SECTIONS.items()
        for name in model.model_fields
    }
    for names, cutoff in ((known, 0.6), (elsewhere, 0.8)):
        if match := difflib.get_close_matches(key, names, 1, cutoff):
            return f"did you mean {names[match[0]]}?"
    return f"known here: {', '.join(known)}"


def _short(value: Any, length: int = 60) -> str:
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= length else text[:length] + "…"

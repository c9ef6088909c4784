"""Record of a finished `uqcalc annotate`, so that a repeated command ends at once.

The record lies beside the output as ``.NAME.done``. A repeated command does nothing
only if everything that determines the output is the same: the content of the source, of
the files of probes and potential, and of this package, the versions of the packages
that compute, the options, and the content of what was written. In any doubt the record
is not used, and the command compares frame by frame as usual.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from uqcalc.files.writing import whole


# Formats that consist of one file; some readers of ASE also read files beside it.
_ALONE = {".xyz", ".extxyz", ".traj", ".db", ".lammpstrj"}
_PACKAGES = (
    "ase",
    "chgnet",
    "e3nn",
    "mace-torch",
    "numpy",
    "orb-models",
    "scipy",
    "sevenn",
    "spglib",
    "torch",
)
_PIECES, _PIECE = 64, 2**20  # largest number of pieces of a file, and their bytes


@dataclass(frozen=True, slots=True)
class Message:
    """Output of the command at its end.

    Attributes
    ----------
    columns : tuple of str
        Titles of the table of the worst frames; empty without a table.
    rows : tuple of tuple of str
    text : str
    failed : int
        Number of frames that could not be evaluated.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    text: str
    failed: int


def job_hash(
    source: Path, options: Mapping[str, object], files: Iterable[Path]
) -> str | None:
    """Return a hash of everything that determines an output, without the output itself.

    Parameters
    ----------
    source : Path
    options : mapping
        Those that have an effect on what is written, as they were given.
    files : iterable of Path
        Files that the options name.

    Returns
    -------
    str or None
        None if the source may be more than one file, or a file cannot be read.
    """
    if source.suffix not in _ALONE:
        return None
    read = [source, *files]
    contents = [_content(path) for path in read]
    if None in contents:
        return None
    stated = {
        "options": {key: str(value) for key, value in options.items()},
        "files": list(zip([str(path.absolute()) for path in read], contents,
                          strict=True)),
        "package": _package(),
        "versions": {name: _version(name) for name in _PACKAGES},
        "machine": [platform.python_version(), platform.machine()],
    }  # fmt: skip
    text = json.dumps(stated, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def earlier_message(done: str, outputs: Iterable[Path]) -> Message | None:
    """Return the message when these outputs were written; None if in doubt.

    Parameters
    ----------
    done : str
        The answer of `job_hash`.
    outputs : iterable of Path
        The first one has the record beside it.
    """
    written = list(outputs)
    try:
        record = json.loads(_beside(written[0]).read_text(encoding="utf-8"))
        message = record["message"]
        same = record["job_hash"] == done and record["outputs"] == _contents(written)
        return (
            Message(
                tuple(message["columns"]),
                tuple(map(tuple, message["rows"])),
                str(message["text"]),
                int(message["failed"]),
            )
            if same
            else None
        )
    except (OSError, ValueError, LookupError, TypeError):
        return None  # no record, or an incomplete one


def write_record(done: str, outputs: Iterable[Path], message: Message) -> None:
    """Write the record beside the first output."""
    written = list(outputs)
    record = {
        "job_hash": done,
        "outputs": _contents(written),
        "message": asdict(message),
    }
    with whole(_beside(written[0])) as partial:
        partial.write_text(json.dumps(record), encoding="utf-8")


def _beside(output: Path) -> Path:
    return output.with_name(f".{output.name}.done")


def _contents(paths: Iterable[Path]) -> list[list[object]]:
    return [[str(path.absolute()), _content(path)] for path in paths]


def _content(path: Path) -> list[object] | None:
    """Return size, time of change and hash of a file; None if it cannot be read.

    Of a file above 64 MiB only evenly spaced pieces are read, with the first and last.
    """
    digest = hashlib.sha256()
    try:
        about = path.stat()
        with path.open("rb") as file:
            for start in _starts(about.st_size):
                file.seek(start)
                digest.update(file.read(_PIECE))
    except OSError:
        return None
    return [about.st_size, about.st_mtime_ns, digest.hexdigest()]


def _starts(size: int) -> list[int]:
    pieces = -(-size // _PIECE)
    if pieces <= _PIECES:
        return [piece * _PIECE for piece in range(pieces)]
    last = size - _PIECE
    return [last * piece // (_PIECES - 1) for piece in range(_PIECES)]


def _package() -> str:
    """Return a hash of all files of this package."""
    digest = hashlib.sha256()
    folder = Path(__file__).parents[1]
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            digest.update(str(path.relative_to(folder)).encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""

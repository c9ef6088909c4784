"""Extended XYZ files to which whole frames are appended; a kill cannot damage them."""

from __future__ import annotations

import os
from pathlib import Path

from ase import Atoms
from ase.io.extxyz import key_val_str_to_dict

from uqcalc.annotating.copies import INFO_KEY
from uqcalc.annotating.frametext import frame_text
from uqcalc.errors import RecordError
from uqcalc.files.writing import GrowingFile


def append_frame(path: Path, frame: Atoms, what: str = "frame") -> tuple[str, ...]:
    """Append one frame; the operating system has it when the function returns.

    Returns
    -------
    tuple of str
        Names of the entries that are left out, as the format cannot hold them
        (`frame_text`).

    Raises
    ------
    RecordError
        If the format cannot hold the geometry; the file stays as it was.
    OSError
        If the file cannot be written; it stays as it was.
    """
    found = frame_text(frame, what)
    GrowingFile(path).append(found.text)
    return found.left_out


def whole_frames(path: Path, what: str, key: str = INFO_KEY) -> tuple[int, int]:
    """Return the number of complete frames of a file, and their bytes.

    Each frame must have the info entry ``key``, by default an assessment. Only an
    incomplete last frame, after a kill, may follow them.

    Raises
    ------
    RecordError
        If the file has other content; ``what`` is its name in the message.
    """
    frames, good = 0, 0
    with path.open("rb") as file:
        while header := file.readline():
            if not header.strip().isdigit():
                msg = (
                    f"{what} must be XYZ, got {header[:40]!r} in {path} in place of a "
                    "number of atoms; choose another name"
                )
                raise RecordError(msg)
            comment = file.readline()
            if comment.endswith(b"\n") and f"{key}=".encode() not in comment:
                entry = "an assessment" if key == INFO_KEY else f"info[{key!r}]"
                msg = (
                    f"{what} must carry {entry}, got {path} whose frame {frames} has "
                    "none; choose another name, because one file must not mix frames "
                    "with and without it"
                )
                raise RecordError(msg)
            last = comment
            for _ in range(int(header)):
                if not last.endswith(b"\n"):  # also the end of the file
                    break
                last = file.readline()
            if not last.endswith(b"\n"):
                break
            frames, good = frames + 1, file.tell()
    return frames, good


def cut_torn_frame(path: Path, what: str, key: str = INFO_KEY) -> int:
    """Cut an incomplete last frame; return the number of complete frames.

    Raises
    ------
    RecordError
        If the file does not consist of XYZ frames with the info entry ``key``; it does
        not change.
    """
    frames, good = whole_frames(path, what, key)
    if path.stat().st_size > good:
        with path.open("rb+") as file:
            file.truncate(good)
    return frames


def cut_frames(path: str | os.PathLike[str], what: str, step: int) -> int:
    """Cut annotated frames from ``step`` on; return the number of frames left.

    The file must hold the frames of a monitored run in the order of its steps. An
    incomplete last frame is cut, too.

    Raises
    ------
    RecordError
        If the file has other content; ``what`` is its name in the message.
    """
    file, left, end = Path(path), 0, 0
    if not file.exists():
        return 0
    frames = cut_torn_frame(file, what)
    with file.open("rb+") as stream:
        for _ in range(frames):
            lines = [stream.readline() for _ in range(2)]
            if key_val_str_to_dict(lines[1].decode()).get("step", -1) >= step:
                break
            for _ in range(int(lines[0])):
                stream.readline()
            left, end = left + 1, stream.tell()
        stream.truncate(end)
    return left

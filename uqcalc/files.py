"""Files that are whole or not there, with one writer, and numbers that JSON holds."""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from uqcalc.errors import RecordError


# What file systems without locks answer, as some of clusters do.
_NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK}


def writable(path: str | os.PathLike[str], what: str) -> Path:
    """Return the absolute path, refusing before a run what would fail within it.

    Raises
    ------
    RecordError
        If the folder does not exist, or the path is no plain file.
    """
    target = Path(path).absolute()
    if not target.parent.is_dir() or target.is_dir():
        msg = (
            f"{what} must be a file in an existing folder, got {target}; make the "
            "folder first, or choose another name"
        )
        raise RecordError(msg)
    return target


@contextmanager
def whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path beside ``path``, renamed once the block has ended well.

    It keeps the ending, by which some writers choose their format.
    """
    target = Path(path).absolute()
    partial = target.with_name(f".{target.stem}.{os.getpid()}.partial{target.suffix}")
    try:
        yield partial
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def one_writer(path: str | os.PathLike[str]) -> FileLock | None:
    """Keep other processes from writing ``path`` for as long as the lock is alive.

    A process that was killed holds none. Within one process it may be taken again, for
    runs one after another. None where the file system has no locks.

    Raises
    ------
    RecordError
        If another process holds it.
    """
    target = Path(path).absolute()
    hidden = target.with_name(f".{target.name}.lock")
    lock = FileLock(
        hidden,
        is_singleton=True,
        thread_local=False,
        blocking=False,
        fallback_to_soft=False,  # a soft lock would outlive a kill, and bar the resume
    )
    try:
        lock.acquire()
    except Timeout as error:
        msg = (
            f"file must have one writer, got {target}, which another running process "
            "writes; choose another name, or end that process first"
        )
        raise RecordError(msg) from error
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return None
    return lock


def strict_json(value: Any) -> Any:
    """Return ``value`` with None for every number that JSON cannot hold."""
    if isinstance(value, Mapping):
        return {str(key): strict_json(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [strict_json(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value

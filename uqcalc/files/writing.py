"""Write files completely or not at all, with one writer; numbers for strict JSON."""

from __future__ import annotations

import errno
import gc
import math
import os
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from typing import Any, ClassVar

import numpy as np
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


def replaceable(path: str | os.PathLike[str], beginning: str, what: str) -> Path:
    """Return where a text may be written: a new file, or over one of its kind.

    Parameters
    ----------
    path : path
    beginning : str
        First characters of each file of this kind. A file without content counts, too.
    what : str
        What the text is, for the message.

    Raises
    ------
    RecordError
        If the folder does not exist, or the file is something else, such as labelled
        frames.
    """
    target = writable(path, what)
    if target.exists():
        with target.open("rb") as file:
            found = file.read(len(beginning.encode()))
        if found and found != beginning.encode():
            msg = (
                f"{what} must be written to a new file or over {what}, got {target}, "
                "which is another kind of file; choose another name"
            )
            raise RecordError(msg)
    return target


@contextmanager
def whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path beside ``path``, renamed once the block has ended well.

    It is a new file under a name that nobody can foresee, and keeps the ending, by
    which some writers choose their format. It is on the disk before it is renamed.
    """
    target = Path(path).absolute()
    partial = target.with_name(f".{target.stem}.{token_hex(8)}.partial{target.suffix}")
    os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


class GrowingFile:
    """A file that grows by whole records: one that fails to be written leaves none.

    Parameters
    ----------
    path : path
        Opened and closed for every record, so that it may be moved in between.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._whole: int | None = None  # where a torn record begins that is still there

    def append(self, text: str) -> None:
        """Append a record; it is with the operating system when this returns.

        Raises
        ------
        OSError
            If it cannot be written; the file then ends where it did before. Where not
            even that can be done, the next call begins with it.
        """
        rest = memoryview(text.encode("utf-8"))
        with self.path.open("ab", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            if self._whole is not None and self._whole < end:
                end = file.truncate(self._whole)
            self._whole = end
            try:
                while rest:
                    rest = rest[file.write(rest) :]
            finally:
                if rest:
                    with suppress(OSError):
                        file.truncate(self._whole)
                        self._whole = None
            self._whole = None

    def sync(self) -> None:
        """Have the operating system put all of it on the disk."""
        if self.path.exists():
            with self.path.open("rb+") as file:
                os.fsync(file.fileno())


class OneWriter:
    """Keeps a file for one writer, for as long as this object is alive.

    Other processes are refused from the start, others of this process while it is
    `held`: runs one after another may share a log. A process that was killed holds
    none. The lock is a hidden file beside the file, removed with the last writer.

    Raises
    ------
    RecordError
        If another process has it, or a writer of this one holds it.
    """

    _known: ClassVar[dict[Path, weakref.ref[OneWriter]]] = {}

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).resolve()
        self.held = False
        self._refuse_another()
        self._lock = _locked(self.path)
        if self._lock is not None:
            weakref.finalize(self, _unlocked, self._lock, os.getpid())

    def __enter__(self) -> OneWriter:
        self.hold()
        return self

    def __exit__(self, *_: object) -> None:
        self.rest()

    def hold(self) -> None:
        """Be the one of this process, until `rest`.

        Raises
        ------
        RecordError
            If another is.
        """
        if not self.held:
            self._refuse_another()
            self._known[self.path] = weakref.ref(self)
            self.held = True

    def rest(self) -> None:
        """Let others of this process have it."""
        self.held = False

    def _another(self) -> bool:
        known = self._known.get(self.path)
        other = None if known is None else known()
        return other is not None and other is not self and other.held

    def _refuse_another(self) -> None:
        if self._another():
            gc.collect()  # one that nothing refers to any more holds nothing
        if self._another():
            msg = (
                f"file must have one writer, got {self.path}, which another Monitor "
                "of this process writes; close() that Monitor first, or choose "
                "another name"
            )
            raise RecordError(msg)


def _locked(target: Path) -> FileLock | None:
    """Return the lock of a file; None where the file system has no locks."""
    lock = FileLock(
        target.with_name(f".{target.name}.lock"),
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
        Path(lock.lock_file).unlink(missing_ok=True)
        return None
    return lock


def _unlocked(lock: FileLock, process: int) -> None:
    """Let go of a lock; the last one removes its file while nobody else can have it.

    Whoever opened it before finds, once it is theirs, that it has no name any more,
    and takes a new one (as `filelock` does).
    """
    if os.getpid() != process:  # a fork's copy
        return
    if lock.lock_counter == 1:
        with suppress(OSError):
            Path(lock.lock_file).unlink()
    lock.release()


def strict_json(value: Any) -> Any:
    """Return ``value`` as JSON can hold it.

    None stands for numbers that JSON has not; arrays become lists, other objects their
    type in angle brackets.
    """
    if isinstance(value, (np.ndarray, np.generic)):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): strict_json(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [strict_json(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if value is None or isinstance(value, (bool, int, float)):
        return value
    return str(value) if isinstance(value, os.PathLike) else f"<{type(value).__name__}>"

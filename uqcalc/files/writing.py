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


# Errors of file systems without locks, as on some clusters.
_NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK}


def writable(path: str | os.PathLike[str], what: str) -> Path:
    """Return the absolute path, if a file can be written there later.

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
    """Return the path if it is a new file, or an existing one of this kind.

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
    """Yield a temporary path beside ``path``; it is renamed if the block succeeds.

    Its name is random, so that nobody can guess it. The ending is that of ``path``, by
    which some writers choose their format. The file is on the disk before it is
    renamed.
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
    """A file that grows by whole records; a failed write leaves no partial record.

    Parameters
    ----------
    path : path
        Opened and closed for every record, so that it may be moved in between.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._whole: int | None = None  # start of an incomplete record

    def append(self, text: str) -> None:
        """Append a record; the operating system has it when the method returns.

        Raises
        ------
        OSError
            If it cannot be written. The file is then cut to its former length; if that
            fails, too, the next call cuts it.
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
        """Make the operating system write the file to disk."""
        if self.path.exists():
            with self.path.open("rb+") as file:
                os.fsync(file.fileno())


class OneWriter:
    """Reserves a file for one writer, as long as this object exists.

    Other processes are refused from the start. Other writers of this process are
    refused while the file is `held`, so that runs one after another may share a log.
    A killed process releases its lock. The lock is a hidden file beside the file; the
    last writer removes it.

    Raises
    ------
    RecordError
        If another process has reserved it, or another writer of this process holds it.
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
        """Reserve the file against other writers of this process, until `rest`.

        Raises
        ------
        RecordError
            If another writer of this process holds the file.
        """
        if not self.held:
            self._refuse_another()
            self._known[self.path] = weakref.ref(self)
            self.held = True

    def rest(self) -> None:
        """Release the file for other writers of this process."""
        self.held = False

    def _another(self) -> bool:
        known = self._known.get(self.path)
        other = None if known is None else known()
        return other is not None and other is not self and other.held

    def _refuse_another(self) -> None:
        if self._another():
            gc.collect()  # drops writers without a reference
        if self._another():
            msg = (
                f"file must have one writer, got {self.path}, which another Monitor "
                "of this process writes; close() that Monitor first, or choose "
                "another name"
            )
            raise RecordError(msg)


def _locked(target: Path) -> FileLock | None:
    """Return the lock of a file; None if the file system has no locks."""
    lock = FileLock(
        target.with_name(f".{target.name}.lock"),
        is_singleton=True,
        thread_local=False,
        blocking=False,
        fallback_to_soft=False,  # a soft lock stays after a kill and blocks later runs
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
    """Release a lock; the last writer removes the lock file before the release.

    A process that has opened this lock file before gets its lock later. Then it finds
    that the file was removed, and opens a new one (as `filelock` does).
    """
    if os.getpid() != process:  # copy in a forked process
        return
    if lock.lock_counter == 1:
        with suppress(OSError):
            Path(lock.lock_file).unlink()
    lock.release()


def strict_json(value: Any) -> Any:
    """Return ``value`` as JSON can hold it.

    NaN and infinity become None, arrays become lists, and other objects become the name
    of their type in angle brackets.
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

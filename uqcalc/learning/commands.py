"""Commands of the user in a learning loop: placeholders, exit status, written files."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from uqcalc.errors import LoopError
from uqcalc.learning import watcher


_LAST_LINES = 5  # of a command's output, in a message


def run_command(
    text: str, output: Path, key: str, values: Mapping[str, Any], place: Path
) -> None:
    """Run a command, unless its file exists.

    The command writes into a new folder. The folder gets its name when the command has
    ended and its file is whole. So files that belong together stay together, such as
    the weights beside a configuration.

    Parameters
    ----------
    text : str
        The command with placeholders; no shell.
    output : Path
        File that the command writes; ``output.parent`` is the folder.
    key : str
        Placeholder of this file.
    values : mapping
        The other placeholders.
    place : Path
        Folder in which the command runs.

    Raises
    ------
    LoopError
        If the command cannot start, ends with another status than 0, or does not
        write its file.
    """
    if output.exists():
        return
    folder = output.parent
    for old in (folder, *folder.parent.glob(f"partial_{folder.name}_*")):
        if old.exists():
            shutil.rmtree(old)
    # a command whose loop was killed may still run, and write into its own folder
    partial = folder.with_name(f"partial_{folder.name}_{os.getpid()}")
    partial.mkdir(parents=True)
    written = partial / output.name
    words = [word.format(**{key: written}, **values) for word in shlex.split(text)]
    log = folder.with_name(f"{folder.name}.log")
    _run(words, folder.name, place, log)
    if not written.is_file() or not written.stat().st_size:
        msg = (
            f"{folder.name} must write {{{key}}}, got no file {written}; see {log}, "
            "and repeat the command"
        )
        raise LoopError(msg)
    partial.replace(folder)


def _run(words: list[str], name: str, place: Path, log: Path) -> None:
    # "python" and "uqcalc" are those of this environment, also if it is not activated
    own = os.path.dirname(sys.executable)  # noqa: PTH120  (a link must stay a link)
    path = os.pathsep.join(filter(None, [own, os.environ.get("PATH")]))
    with log.open("wb") as stream:
        stream.write(f"$ {shlex.join(words)}\n".encode())
        stream.flush()
        try:
            process = subprocess.Popen(
                words,
                cwd=place,
                env=os.environ | {"PATH": path},
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            msg = f"{name} must be a command that starts, got {words[0]} ({error})"
            raise LoopError(msg) from error
        with _ends_with_this_process(process):
            status = process.wait()
    if status:
        last = log.read_text(encoding="utf-8", errors="replace").splitlines()[1:]
        msg = (
            f"{name} must end with status 0, got {status}: "
            f"{' / '.join(last[-_LAST_LINES:])}; see {log}, and repeat the command"
        )
        raise LoopError(msg)


@contextmanager
def _ends_with_this_process(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """End a process, and all that it has started, if this process is interrupted.

    ``process`` has its own process group, which neither Ctrl-C in the terminal nor the
    end of this process ends. A second process ends the group when a pipe closes. Only
    this process holds the pipe open, so it closes also after a kill.
    """
    words = [sys.executable, "-I", watcher.__file__, str(process.pid)]
    guard = subprocess.Popen(words, stdin=subprocess.PIPE, start_new_session=True)
    try:
        yield
    finally:
        if process.poll() is not None:
            guard.kill()  # before the pipe closes
        if guard.stdin is not None:
            guard.stdin.close()
        process.wait()
        guard.wait()

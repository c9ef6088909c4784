"""End a process group when the process at the other end of a pipe has ended.

A program of its own, because a killed process cannot clean up:
``python watcher.py PROCESS_GROUP``, with the pipe as standard input.
"""

import os
import signal
import sys
import time


GRACE_S = 10.0  # from the request to end until the group is killed


def end_group(group: int, grace_s: float = GRACE_S) -> None:
    """Ask all processes of a group to end, and kill those that are left."""
    try:
        os.killpg(group, signal.SIGTERM)
        deadline = time.monotonic() + grace_s
        while time.monotonic() < deadline:
            os.killpg(group, 0)  # fails when none is left
            time.sleep(0.05)
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        pass


if __name__ == "__main__":
    sys.stdin.buffer.read()  # until the last holder of the other end has ended
    end_group(int(sys.argv[1]))

"""One writer for each file, also if the file system has no locks."""

from __future__ import annotations

import errno
import fcntl
import gc

from uqcalc.files.writing import OneWriter


def test_file_system_without_locks_is_accepted(tmp_path, monkeypatch):
    def absent(*_):
        raise OSError(errno.ENOSYS, "no locks here")

    gc.collect()  # writers of other tests release their locks now, not below
    monkeypatch.setattr(fcntl, "flock", absent)
    first = OneWriter(tmp_path / "run.jsonl")
    OneWriter(tmp_path / "run.jsonl").hold()  # and again: no lock was left
    first.hold()
    assert list(tmp_path.iterdir()) == []

"""Files that are whole or not there, and numbers that JSON can hold."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


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


def strict_json(value: Any) -> Any:
    """Return ``value`` with None for every number that JSON cannot hold."""
    if isinstance(value, Mapping):
        return {str(key): strict_json(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [strict_json(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value

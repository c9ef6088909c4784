"""Former names of class attributes and of arguments: they work for one more release."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar


Class = TypeVar("Class", bound=type)


class Former:
    """A method or attribute under its former name; its use is a DeprecationWarning.

    Examples
    --------
    >>> class Ball:
    ...     def throw(self) -> str:
    ...         return "thrown"
    ...
    ...     toss = Former("throw")
    """

    def __init__(self, new: str) -> None:
        self.new = new

    def __set_name__(self, owner: type, old: str) -> None:
        self.owner, self.old = owner.__name__, old

    def __get__(self, instance: object, owner: type) -> Any:
        _warn(f"{self.owner}.{self.old}", f"{self.owner}.{self.new}", 3)
        return getattr(owner if instance is None else instance, self.new)


def former_argument(old: str, new: str) -> Callable[[Class], Class]:
    """Let a class take its argument ``new`` under the name ``old``, with a warning."""

    def decorate(kind: Class) -> Class:
        build: Callable[..., None] = vars(kind)["__init__"]

        @wraps(build)
        def init(self: object, *args: Any, **entries: Any) -> None:
            if old in entries:
                _warn(f"{kind.__name__}({old}=)", f"{kind.__name__}({new}=)", 3)
                entries[new] = entries.pop(old)
            build(self, *args, **entries)

        type.__setattr__(kind, "__init__", init)
        return kind

    return decorate


def _warn(old: str, new: str, level: int) -> None:
    text = f"{old} is now {new}; version 0.3 removes the old name"
    warnings.warn(text, DeprecationWarning, stacklevel=level)

"""Files with tensors and a card: safetensors with a checksum, without pickle.

A card is read without torch, so that `uqcalc info` is fast.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, deserialize

from uqcalc.errors import FileWarning, UqcalcError
from uqcalc.files.writing import whole, writable


if TYPE_CHECKING:
    import torch

# Key of the checksum in the metadata of a file.
CHECKSUM = "uqcalc_checksum"


@dataclass(frozen=True)
class Kind:
    """A kind of file: its name in messages, the key of its card, how to get one.

    Attributes
    ----------
    name, key : str
    error : subclass of UqcalcError
        Class of the errors about such a file.
    make, otherwise : str
        How to make such a file, and what to do if it is damaged.
    checked_since : int
        First schema whose files have a checksum: such a file without a checksum is
        damaged. An earlier one is read with a warning.
    infinite : tuple of str
        Ends of the names of tensors that may be +inf, such as limits not yet set.
    unknown : tuple of str
        Ends of the names of tensors that may hold NaN and infinities, such as held-out
        risks.
    schema : int
        Newest schema of a card that this version reads.
    """

    name: str
    key: str
    error: type[UqcalcError]
    make: str
    otherwise: str
    checked_since: int = 0
    infinite: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    schema: int = 1

    def schema_of(self, card: Mapping[str, Any], origin: str = "") -> int:
        """Return the schema of a card; 1 if the card has none.

        Raises
        ------
        UqcalcError
            If it is newer than this version of uqcalc; ``origin`` names the file.
        """
        schema = card.get("schema", 1)
        if not isinstance(schema, int) or schema > self.schema:
            msg = (
                f"schema of a {self.name} must be at most {self.schema} for this "
                f"version of uqcalc, got {schema!r}{origin}; upgrade uqcalc"
            )
            raise self.error(msg)
        return schema

    def read(
        self, path: str | os.PathLike[str]
    ) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Return all tensors, and the card.

        Raises
        ------
        UqcalcError
            If there is no such file, it is not a whole safetensors file, it has no
            card of this kind, a byte is not what was written, or a number is not
            finite.
        """
        from safetensors.torch import load

        content = self._content(path)
        card = self._card(path, content)
        try:
            tensors = load(content)
        except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
            raise self._damaged(path, error) from error
        self._check_numbers(tensors, path)
        return tensors, card

    def card(self, path: str | os.PathLike[str]) -> dict[str, Any]:
        """Return only the card, without torch, after a check of the whole file.

        Raises
        ------
        UqcalcError
            As `read`, except for numbers that are not finite.
        """
        return self._card(path, self._content(path))

    def write(
        self,
        path: str | os.PathLike[str],
        tensors: Mapping[str, torch.Tensor],
        card: Mapping[str, Any],
    ) -> Path:
        """Write one file, whole or not at all, and return its path.

        Raises
        ------
        RecordError, UqcalcError
            As `target`, and if a number that must be finite is not.
        """
        from safetensors.torch import save

        target = self.target(path)
        self._check_numbers(tensors, target)
        contiguous = {k: v.cpu().contiguous() for k, v in tensors.items()}
        metadata = {self.key: json.dumps(card, ensure_ascii=False)}
        metadata[CHECKSUM] = checksum(save(contiguous, metadata))
        with whole(target) as partial:
            # not save_file: only the owner could read its file
            partial.write_bytes(save(contiguous, metadata))
        return target

    def target(self, path: str | os.PathLike[str]) -> Path:
        """Return the path if it is a new file, or an existing one of this kind.

        Raises
        ------
        RecordError
            If the folder does not exist.
        UqcalcError
            If the file is something else, such as the labelled frames.
        """
        target = writable(path, self.name)
        filled = target.exists() and target.stat().st_size > 0
        if filled and self.key not in (metadata_of(target) or {}):
            msg = (
                f"{self.name} must be written to a new file or over a {self.name}, "
                f"got {target}, which is another kind of file; choose another name"
            )
            raise self.error(msg)
        return target

    def _content(self, path: str | os.PathLike[str]) -> bytes:
        if not Path(path).is_file():
            msg = f"{self.name} must be an existing file, got {path}; {self.make}"
            raise self.error(msg)
        return Path(path).read_bytes()

    def _card(self, path: str | os.PathLike[str], content: bytes) -> dict[str, Any]:
        """Return the card in a file's metadata, after a check of the checksum."""
        try:
            metadata = _metadata(content)
            found = checksum(content)
        except (SafetensorError, ValueError, RecursionError) as error:
            raise self._damaged(path, error) from error
        if self.key not in metadata:
            msg = (
                f"{path} must be a uqcalc {self.name}, got a safetensors file without "
                f"a card; {self.make}"
            )
            raise self.error(msg)
        if metadata.get(CHECKSUM, found) != found:
            msg = (
                f"{self.name} must be unchanged since uqcalc wrote it, got {path}, "
                "whose checksum differs: the file was damaged or edited; "
                f"{self.otherwise}"
            )
            raise self.error(msg)
        try:
            card = json.loads(metadata[self.key])
        except (ValueError, RecursionError) as error:
            raise self._damaged(path, error) from error
        if not isinstance(card, dict):
            msg = f"its card is a {type(card).__name__}"
            raise self._damaged(path, msg)
        if CHECKSUM not in metadata:
            early = set(metadata) == {self.key}  # only the card
            self._without_checksum(path, card.get("schema", 0), early=early)
        return card

    def _without_checksum(
        self, path: str | os.PathLike[str], schema: object, *, early: bool
    ) -> None:
        """Refuse a file that must have a checksum, and warn of an earlier one."""
        if not early or not isinstance(schema, int) or schema >= self.checked_since:
            msg = (
                f"{self.name} of schema {schema} must have its checksum, got {path} "
                f"without one: the file was damaged or edited; {self.otherwise}"
            )
            raise self.error(msg)
        text = (
            f"{self.name} {path} has no checksum, because an earlier version of "
            "uqcalc wrote it, and damage cannot be detected; save it again to add a "
            "checksum"
        )
        # the user's line, through `FileCard.read` and a `load` of uqcalc
        warnings.warn(text, FileWarning, stacklevel=6)

    def _check_numbers(
        self, tensors: Mapping[str, torch.Tensor], path: str | os.PathLike[str]
    ) -> None:
        for name, tensor in tensors.items():
            if name.endswith(self.unknown):
                continue
            wrong = ~tensor.isfinite()
            if name.endswith(self.infinite):
                wrong &= ~tensor.isposinf()
            if count := int(wrong.sum()):
                msg = (
                    f"numbers of a {self.name} must be finite, got {count} of "
                    f"{tensor.numel()} in {name!r} of {path} that are NaN or "
                    f"infinite; {self.otherwise}"
                )
                raise self.error(msg)

    def _damaged(self, path: str | os.PathLike[str], why: object) -> UqcalcError:
        msg = (
            f"{self.name} must be a complete safetensors file, got {path} ({why}); "
            f"{self.otherwise}"
        )
        return self.error(msg)


def checksum(content: bytes) -> str:
    """Return the SHA-256 of all that a safetensors file holds, as hexadecimal digits.

    It covers names, types, shapes and bytes of the tensors in the order of their names,
    and the metadata without the checksum itself. The order in the file has no effect.

    Raises
    ------
    SafetensorError
        If it is not a whole safetensors file.
    """
    total = hashlib.sha256()
    for name, tensor in sorted(deserialize(content), key=itemgetter(0)):
        data = tensor["data"]
        head = [name, tensor["dtype"], list(tensor["shape"]), len(data)]
        total.update(json.dumps(head).encode())
        total.update(data)
    metadata = _metadata(content)
    metadata.pop(CHECKSUM, None)
    total.update(json.dumps(metadata, sort_keys=True).encode())
    return total.hexdigest()


def metadata_of(path: str | os.PathLike[str]) -> dict[str, str] | None:
    """Return the metadata of a safetensors file; None if it is something else.

    Only the header is read; the only check is that the file is complete.
    """
    from safetensors import safe_open

    try:
        with safe_open(path, framework="np") as file:
            return dict(file.metadata() or {})
    except SafetensorError:
        return None


def _metadata(content: bytes) -> dict[str, str]:
    """Return the metadata in the header of a safetensors file."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    return dict(header.get("__metadata__") or {})


def load_state(
    module: torch.nn.Module,
    state: dict[str, torch.Tensor],
    origin: str,
    error: type[UqcalcError],
) -> None:
    """Load weights into ``module``; refuse weights that do not fit."""
    try:
        module.load_state_dict(state)
    except RuntimeError as cause:
        msg = (
            f"weights in {origin} must fit the shape on its card, got: {cause}; "
            "the file is damaged, make it again"
        )
        raise error(msg) from cause

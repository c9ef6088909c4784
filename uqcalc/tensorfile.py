"""Files of ours that hold tensors and a card: safetensors, never pickle."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialise

from uqcalc.errors import UqcalcError
from uqcalc.files import whole, writable


@dataclass(frozen=True)
class Kind:
    """A kind of file: its name in messages, the key of its card, how to get one."""

    name: str
    key: str
    error: type[UqcalcError]
    make: str
    otherwise: str

    def read(
        self, path: str | os.PathLike[str]
    ) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        """Return all tensors and the metadata; `card` reads the latter.

        Raises
        ------
        UqcalcError
            If there is no such file, or it is not a whole safetensors file.
        """
        if not Path(path).is_file():
            msg = f"{self.name} must be an existing file, got {path}; {self.make}"
            raise self.error(msg)
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
                return tensors, file.metadata() or {}
        except SafetensorError as error:
            msg = (
                f"{self.name} must be a whole safetensors file, got {path} ({error}); "
                f"{self.otherwise}"
            )
            raise self.error(msg) from error

    def card(
        self, path: str | os.PathLike[str], metadata: Mapping[str, str]
    ) -> dict[str, Any]:
        """Return the card in a file's metadata.

        Raises
        ------
        UqcalcError
            If it has none: it is something else.
        """
        if self.key not in metadata:
            msg = (
                f"{path} must be a uqcalc {self.name}, got a safetensors file without "
                f"a card; {self.make}"
            )
            raise self.error(msg)
        card: dict[str, Any] = json.loads(metadata[self.key])
        return card

    def write(
        self,
        path: str | os.PathLike[str],
        tensors: Mapping[str, torch.Tensor],
        card: Mapping[str, Any],
    ) -> Path:
        """Write one file, whole or not at all, and return where.

        Raises
        ------
        RecordError, UqcalcError
            As `target`.
        """
        target = self.target(path)
        contiguous = {k: v.cpu().contiguous() for k, v in tensors.items()}
        metadata = {self.key: json.dumps(card, ensure_ascii=False)}
        with whole(target) as partial:
            # by way of bytes: save_file would make the file private to its owner
            partial.write_bytes(serialise(contiguous, metadata))
        return target

    def target(self, path: str | os.PathLike[str]) -> Path:
        """Return where one may be written: a new file, or over one of its kind.

        Raises
        ------
        RecordError
            If the folder does not exist.
        UqcalcError
            If the file is something else, such as the labelled frames.
        """
        target = writable(path, self.name)
        if target.exists() and target.stat().st_size > 0:
            try:
                known = self.key in self.read(target)[1]
            except self.error:
                known = False
            if not known:
                msg = (
                    f"{self.name} must be written to a new file or over a {self.name}, "
                    f"got {target}, which is something else; choose another name"
                )
                raise self.error(msg)
        return target


def load_state(
    module: torch.nn.Module,
    state: dict[str, torch.Tensor],
    origin: str,
    error: type[UqcalcError],
) -> None:
    """Load weights into ``module``, refusing what does not fit it."""
    try:
        module.load_state_dict(state)
    except RuntimeError as cause:
        msg = (
            f"weights in {origin} must fit the shape on its card, got: {cause}; "
            "the file is damaged, make it again"
        )
        raise error(msg) from cause

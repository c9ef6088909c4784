"""One vector for a whole structure, from the features of its atoms.

Mean and standard deviation over the atoms are taken for each feature. A change of one
atom in a large structure moves the standard deviation more than the mean. Long vectors
are projected to 64 numbers with a fixed matrix of signs, which keeps distances within
about 20 % (Achlioptas, doi:10.1016/S0022-0000(03)00025-4).
"""

from __future__ import annotations

import hashlib
import math
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from uqcalc.errors import RecordError


if TYPE_CHECKING:
    import torch

# Entries of ``info``: the vector, and the potential that it belongs to.
DESCRIPTOR_KEY = "uqcalc_descriptor"
POTENTIAL_KEY = "uqcalc_descriptor_of"
LENGTH = 64
_DIGITS = 7  # as in single precision; shorter lines in files


def structure_descriptor(features: torch.Tensor) -> NDArray[np.float64]:
    """Return the vector of a structure, at most 64 numbers.

    Parameters
    ----------
    features : tensor (atoms, dim)
        On any device. NaN in the features gives NaN.
    """
    rows = features.detach().double()
    mean = rows.mean(dim=0)
    centred = rows - mean
    # several times faster than Tensor.std along the first axis
    spread = (centred * centred).mean(dim=0).sqrt()
    both = np.concatenate([mean.cpu().numpy(), spread.cpu().numpy()])
    if len(both) <= LENGTH:
        return both
    return np.asarray(both @ _signs(len(both)) / math.sqrt(LENGTH), dtype=float)


def store_descriptor(
    frame: Atoms, vector: NDArray[np.float64], fingerprint: str
) -> None:
    """Put a vector and the potential that it belongs to into ``info``."""
    rounded = [float(f"{number:.{_DIGITS}g}") for number in vector]
    frame.info[DESCRIPTOR_KEY] = np.array(rounded)
    frame.info[POTENTIAL_KEY] = potential_name(fingerprint)


def read_descriptor(frame: Atoms) -> tuple[NDArray[np.float64], str] | None:
    """Return the stored vector and the name of its potential; None without them.

    Raises
    ------
    RecordError
        If the stored entry is not a list of numbers.
    """
    stored = frame.info.get(DESCRIPTOR_KEY)
    if stored is None:
        return None
    try:
        vector = np.atleast_1d(np.asarray(stored, dtype=float))
    except (TypeError, ValueError) as error:
        msg = (
            f"info[{DESCRIPTOR_KEY!r}] must be a list of numbers, got "
            f"{str(stored)[:60]!r}; take the entry out of the frame"
        )
        raise RecordError(msg) from error
    return vector, str(frame.info.get(POTENTIAL_KEY, "unknown"))


def potential_name(fingerprint: str) -> str:
    """Return a short name of a potential, equal only for the same fingerprint."""
    # starts with a letter: ASE would read 12e4567 as the number infinity
    return f"p{hashlib.sha256(fingerprint.encode()).hexdigest()[:15]}"


@lru_cache(maxsize=8)
def _signs(length: int) -> NDArray[np.float64]:
    """Return a fixed matrix of +1 and -1, shape (length, 64)."""
    count = length * LENGTH
    drawn = hashlib.shake_256(b"uqcalc").digest(-(-count // 8))
    bits = np.unpackbits(np.frombuffer(drawn, np.uint8))[:count]
    return np.where(bits.reshape(length, LENGTH), 1.0, -1.0)

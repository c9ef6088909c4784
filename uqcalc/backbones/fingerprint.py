"""Identity of a model, unchanged by casts, compilation and memory layout."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
import torch


def fingerprint(
    kind: str, parameters: Iterable[torch.Tensor], constants: Iterable[object] = ()
) -> str:
    """Return ``kind:hash`` of a model's weights.

    The weights are rounded to float32 and sorted together, so that the same model
    in float64, compiled, scripted or with permuted layouts has one fingerprint;
    ``constants`` (cutoff, elements, head) distinguish models with equal weights.
    """
    flat = [p.detach().cpu().to(torch.float32).numpy().ravel() for p in parameters]
    # + 0.0 turns -0.0 into 0.0
    weights = np.sort(np.concatenate(flat)) + np.float32(0.0)
    digest = hashlib.sha256(weights.tobytes())
    digest.update(repr(list(constants)).encode())
    return f"{kind}:{digest.hexdigest()[:16]}"


def combined(kind: str, parts: Iterable[str], constants: Iterable[object] = ()) -> str:
    """Return ``kind:hash`` of several fingerprints, in order.

    `same_model` accepts two combinations if it accepts each pair of their parts.
    """
    cores, _, rests = zip(*(part.partition("-") for part in parts), strict=True)
    name = f"{kind}:{_digest([cores, *constants])}"
    if CONVERTED in rests:
        return f"{name}-{CONVERTED}"
    return f"{name}-{_digest(rests)}" if any(rests) else name


def _digest(what: object) -> str:
    return hashlib.sha256(repr(what).encode()).hexdigest()[:16]


# Replaces the hash of weights that a conversion stores in another basis.
CONVERTED = "converted"


def same_model(one: str, other: str) -> bool:
    """Return whether two fingerprints belong to the same model.

    A fingerprint may end in ``-hash``: the hash of weights that some conversions store
    in another basis. `CONVERTED` in place of this hash matches every hash.
    """
    (one_core, _, one_rest), (core, _, rest) = one.partition("-"), other.partition("-")
    return one_core == core and (one_rest == rest or CONVERTED in {one_rest, rest})

"""How widely the attention of a probe is spread over the atoms."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike


def attention_entropy(importance: ArrayLike) -> float:
    """Return the entropy of the attention of one structure, from 0 to 1.

    It is the Shannon entropy of the shares divided by its largest value ln N: 1 for an
    even spread over all N atoms, 0 if one atom gets all attention. 1 for one atom.

    Parameters
    ----------
    importance : array (atoms,)
        ``probe_importance`` of the results, or of an annotated frame. Sums to 1.

    Returns
    -------
    float
        NaN if the importance has a NaN.

    Raises
    ------
    ValueError
        If it has no atoms, or a share is negative.

    Examples
    --------
    >>> attention_entropy([0.25, 0.25, 0.25, 0.25]), attention_entropy([1.0, 0.0])
    (1.0, 0.0)
    """
    shares = np.asarray(importance, dtype=float).reshape(-1)
    if not len(shares) or (shares < 0).any():
        msg = (
            "importance must be shares of at least one atom, from 0 to 1, got "
            f"{len(shares)} numbers with the lowest {shares.min(initial=0):.3g}"
        )
        raise ValueError(msg)
    if len(shares) == 1:
        return 1.0 if np.isfinite(shares).all() else float("nan")
    shares = shares / shares.sum()
    filled = shares[~(shares == 0)]  # NaN stays
    return float(np.abs(filled @ np.log(filled)) / np.log(len(shares)))

"""The Mahalanobis distance, and the whitening matrix from which it is computed."""

from __future__ import annotations

import torch


def whitening(covariance: torch.Tensor, floor: float) -> torch.Tensor:
    """Return W with W Wᵀ = (C + floor I)⁻¹, (dim, dim), by a Cholesky factorisation.

    Parameters
    ----------
    covariance : tensor (dim, dim)
        C, a covariance or a second moment.
    floor : float
        Added to the diagonal. It bounds W where features depend on each other.

    Raises
    ------
    torch.linalg.LinAlgError
        If C + floor I is not positive definite.
    """
    eye = torch.eye(len(covariance)).to(covariance)
    factor = torch.linalg.cholesky(covariance + floor * eye)
    inverse: torch.Tensor = torch.linalg.solve_triangular(factor, eye, upper=False)
    return inverse.T.contiguous()


def squared_distances(centred: torch.Tensor, whitening: torch.Tensor) -> torch.Tensor:
    """Return the squared Mahalanobis distance over the dimension, xᵀ C⁻¹ x / dim.

    Mahalanobis 1936. It is about 1 for rows that are drawn like those of C, for any
    dimension. NaN in a row gives NaN.

    Parameters
    ----------
    centred : tensor (rows, dim)
        Rows x, after subtraction of the mean.
    whitening : tensor (dim, dim)
        W with W Wᵀ = C⁻¹.

    Returns
    -------
    tensor (rows,)
    """
    return (centred @ whitening).square().mean(dim=1)

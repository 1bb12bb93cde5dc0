"""Distances between two sets of images, over any feature function, in float64 on the host.

    FID = |m_1 - m_2|^2 + tr(C_1 + C_2 - 2 (C_1 C_2)^(1/2))              Heusel et al. 2017, equation 6
    KID = unbiased MMD^2 with k(x, y) = (x . y / D + 1)^3                Binkowski et al. 2018, section 4

Only values from the same features and set sizes compare.
"""

from typing import NamedTuple

import numpy as np


class Statistics(NamedTuple):
    """mean [D], covariance [D, D] (unbiased), float64."""

    mean: np.ndarray
    covariance: np.ndarray


def feature_statistics(features: np.ndarray) -> Statistics:
    """Mean and covariance of features [N, D], N >= 2."""
    features = np.asarray(features, np.float64)
    return Statistics(features.mean(0), np.cov(features, rowvar=False).reshape(features.shape[1], -1))


def frechet_distance(p: Statistics, q: Statistics) -> float:
    """Squared Frechet distance of two Gaussians. Uses tr (C_1 C_2)^(1/2) = tr (S C_2 S)^(1/2), S = C_1^(1/2)."""
    values, vectors = np.linalg.eigh(p.covariance)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ q.covariance @ root), 0)).sum()
    return float(np.square(p.mean - q.mean).sum() + np.trace(p.covariance) + np.trace(q.covariance) - 2 * cross)


def fid(features: np.ndarray, reference: np.ndarray) -> float:
    """Frechet distance of features [N, D] and reference features [M, D]."""
    return frechet_distance(feature_statistics(features), feature_statistics(reference))


def kid(features: np.ndarray, reference: np.ndarray) -> float:
    """Kernel distance of features [N, D] and reference features [M, D], from all pairs (no random subsets).

    Where N = M the pairs (i, i) between the sets are left out, as in equation 3 of Gretton et al. 2012: still unbiased
    for independent sets, and also for restorations, whose image i comes from reference image i.
    """
    x, y = np.asarray(features, np.float64), np.asarray(reference, np.float64)

    def kernel(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        return (u @ v.T / u.shape[1] + 1) ** 3

    def off_diagonal_mean(k: np.ndarray) -> float:
        return float((k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)))

    between = kernel(x, y)
    cross = off_diagonal_mean(between) if len(x) == len(y) else float(between.mean())
    return off_diagonal_mean(kernel(x, x)) + off_diagonal_mean(kernel(y, y)) - 2 * cross

"""Fits by the Huber loss of the log, the objective of arXiv 2203.15556, many at once.

With a = log A, b = log B and e = log E, a law's log is the log of a sum of three exponentials,
LSE(a - alpha log N, b - beta log D, e). Its first and second derivatives are short, so Newton's
method finds the minimum of each start, or of each resampling of the points, to the last digit.
"""

import numpy as np

DELTA = 1e-3
"""The difference of logs beyond which the objective grows linearly and no longer as a square."""
MOST_STEPS = 200
"""The largest number of Newton steps."""
_CLOSE = 1e-12  # relative decrease of the objective below which a fit is at its minimum
_CHUNK = 2_000_000  # numbers in the largest array
_DAMPING = (1e-6, 1e12)  # the first, and the one at which no step helps any more


def minimize_huber(
    starts: np.ndarray, points: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the coefficients at the minimum near each start [s, 5], and the objectives [s].

    Args:
      starts: (log A, log B, log E, alpha, beta) of each fit [s, 5].
      points: log N, log D and the log of the loss [3, n].
      weights: how many times each point counts [n], or in each fit [s, n].
    """
    rows = max(1, _CHUNK // (5 * points.shape[1]))
    weights = np.broadcast_to(weights, (len(starts), points.shape[1]))
    found, objectives = np.empty((len(starts), 5)), np.empty(len(starts))
    for first in range(0, len(starts), rows):
        part = slice(first, first + rows)
        found[part], objectives[part] = _minimize(starts[part], points, weights[part])
    return found, objectives


def _minimize(
    theta: np.ndarray, points: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    theta, value = theta.copy(), _objective(theta, points, weights)
    damping = np.full(len(theta), _DAMPING[0])
    active = np.arange(len(theta))
    for _ in range(MOST_STEPS):
        if not len(active):
            break
        kept = weights[active]
        gradient, hessian = _derivatives(theta[active], points, kept)
        # Of the curvature only the size counts, so that a step leads down near a saddle as well.
        sizes, axes = np.linalg.eigh(hessian)
        scale = np.abs(sizes).max(axis=1, keepdims=True)
        floor = np.maximum(np.abs(sizes), 1e-13 * scale) + damping[active, None] * scale
        step = -np.einsum("sij,sj->si", axes, np.einsum("sji,sj->si", axes, gradient) / floor)
        there = theta[active] + step
        found = _objective(there, points, kept)
        better = found < value[active]
        gain = np.where(better, value[active] - found, 0.0)
        taken = active[better]
        theta[taken], value[taken] = there[better], found[better]
        damping[active] *= np.where(better, 0.1, 10.0)
        small = gain <= _CLOSE * value[active]
        is_done = (better & small & (damping[active] < 1e-9)) | (damping[active] > _DAMPING[1])
        active = active[~is_done]
    return theta, value


def _terms(theta: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the residuals of the log [s, n] and the share of each term in the loss [3, s, n]."""
    a, b, e, alpha, beta = theta.T[:, :, None]
    terms = np.stack(np.broadcast_arrays(a - alpha * points[0], b - beta * points[1], e))
    top = terms.max(axis=0)
    shares = np.exp(terms - top)
    total = shares.sum(axis=0)
    return top + np.log(total) - points[2], shares / total


def _objective(theta: np.ndarray, points: np.ndarray, weights: np.ndarray) -> np.ndarray:
    size = np.abs(_terms(theta, points)[0])
    inside = np.minimum(size, DELTA)
    return (weights * inside * (size - inside / 2)).sum(axis=1)


def _derivatives(
    theta: np.ndarray, points: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the gradient [s, 5] and the matrix of second derivatives [s, 5, 5]."""
    residuals, (first, second, third) = _terms(theta, points)
    slopes = weights * np.clip(residuals, -DELTA, DELTA)
    curves = weights * (np.abs(residuals) <= DELTA)
    n, d = points[0], points[1]
    jacobian = np.stack([first, second, third, -first * n, -second * d])
    gradient = (slopes * jacobian).sum(axis=2).T
    hessian = np.einsum("isn,jsn->sij", (curves - slopes) * jacobian, jacobian, optimize=True)
    # What the curvature of the terms themselves adds, each with its own two coefficients.
    for place, logs, share in ((0, n, first), (1, d, second)):
        own = slopes * share
        hessian[:, place, place] += own.sum(axis=1)
        hessian[:, place, place + 3] -= (own * logs).sum(axis=1)
        hessian[:, place + 3, place] -= (own * logs).sum(axis=1)
        hessian[:, place + 3, place + 3] += (own * logs**2).sum(axis=1)
    hessian[:, 2, 2] += (slopes * third).sum(axis=1)
    return gradient, hessian

"""The law of a loss, E + A / N^alpha + B / D^beta, and what follows from it in closed form."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

FLOPS = 6.0
"""Operations of training for each parameter and token (arXiv 2001.08361)."""
NAMES = ("A", "B", "E", "alpha", "beta")
"""The coefficients of a law, in the order in which all arrays here have them."""


@dataclass(frozen=True)
class Law:
    """A loss by parameters N and tokens D: E + A / N^alpha + B / D^beta (arXiv 2203.15556).

    Each coefficient is a number, or an array with one value for each resampling of the points.
    """

    A: float
    B: float
    E: float
    alpha: float
    beta: float

    def loss(self, parameters: np.ndarray | float, tokens: np.ndarray | float) -> np.ndarray:
        """Returns the loss, in the unit of E."""
        n, d = np.asarray(parameters, float), np.asarray(tokens, float)
        with np.errstate(over="ignore"):  # laws of resampled points may be wild
            return np.asarray(self.E + self.A * n**-self.alpha + self.B * d**-self.beta)

    def optimal_parameters(self, flops: np.ndarray | float) -> np.ndarray:
        """Returns the N with the smallest loss among those with 6 N D = `flops`.

        NaN where the law has no such minimum, because an exponent is not positive.
        """
        total = self.alpha + self.beta
        with np.errstate(all="ignore"):
            scale = (self.alpha * self.A / (self.beta * self.B)) ** (1 / total)
            best = scale * (np.asarray(flops, float) / FLOPS) ** (self.beta / total)
        has_minimum = (np.asarray(self.alpha) > 0) & (np.asarray(self.beta) > 0)
        return np.where(has_minimum, best, np.nan)

    def optimal_loss(self, flops: np.ndarray | float) -> np.ndarray:
        """Returns the loss at the best N and D of some FLOPs."""
        parameters = self.optimal_parameters(flops)
        return self.loss(parameters, np.asarray(flops, float) / (FLOPS * parameters))

    @property
    def exponents(self) -> Mapping[str, float]:
        """The exponents of the best N, the best D and the reducible loss in the FLOPs."""
        total = self.alpha + self.beta
        return {
            "parameters": self.beta / total,
            "tokens": self.alpha / total,
            "loss": self.alpha * self.beta / total,
        }

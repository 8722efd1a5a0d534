"""The ranges of number fields: `weight_decay: Annotated[float, NonNegative] = 0.1`.

Overrides, checks and help read the range at the field.
"""

import ctypes
import math
from dataclasses import dataclass
from typing import Annotated, Literal

from jaxpretrain.config.schema import Rule


@dataclass(frozen=True)
class Between(Rule):
    """The numbers between two ends, also as devices hold them: 0.99999999999 is 1 in float32."""

    low: float
    """The lower end."""
    high: float
    """The upper end."""
    ends: Literal["[]", "[)", "(]", "()"] = "[]"
    """The ends that belong to the range: a square bracket includes an end."""

    def complaint(self, value: object) -> str:
        """Returns the complaint about a number outside the range; "" for others."""
        if not isinstance(value, int | float) or isinstance(value, bool):
            return ""
        if not self._holds(value):
            return f"must be {self}"
        if type(value) is int:
            return "" if -(2**63) <= value < 2**63 else f"must be {self} and fit in 64 bits"
        stored = ctypes.c_float(value).value
        if math.isfinite(stored) and self._holds(stored):
            return ""
        return f"must be {self}, also in float32, where it is {stored:g}"

    def __str__(self) -> str:
        if (self.low, self.high, self.ends[0]) == (0, math.inf, "("):
            return "positive"
        if self.ends == "[]" and math.inf not in (-self.low, self.high):
            return f"from {self.low:.12g} to {self.high:.12g}"
        above = f"above {self.low:.12g}" if self.ends[0] == "(" else f"{self.low:.12g} or more"
        below = f"below {self.high:.12g}" if self.ends[1] == ")" else f"{self.high:.12g} or less"
        bounds = [(self.low, above), (self.high, below)]
        return " and ".join(text for bound, text in bounds if math.isfinite(bound))

    def _holds(self, value: float) -> bool:
        above = value > self.low if self.ends[0] == "(" else value >= self.low
        below = value < self.high if self.ends[1] == ")" else value <= self.high
        return above and below


def at_least(low: float) -> Between:
    """Returns the range of the numbers from `low` on."""
    return Between(low, math.inf)


def above(low: float) -> Between:
    """Returns the range of the numbers larger than `low`."""
    return Between(low, math.inf, "()")


Positive = above(0)
"""The numbers larger than 0."""

NonNegative = at_least(0)
"""0, which means off, and the numbers larger than it."""

# Types that several configs share. Their upper ends lie far above what anyone has trained and below
# what overflows the arithmetic of shapes.

Width = Annotated[int, Between(1, 2**24)]
"""The type of a field that holds the size of a dimension of a layer."""

Depth = Annotated[int, Between(1, 1000)]
"""The type of a field that holds a number of layers."""

NumIds = Annotated[int, Between(1, 2**31 - 1)]
"""The type of a field that holds a number of token ids, which devices keep in 32 bits."""

SequenceLength = Annotated[int, Between(2, 2**27)]
"""The type of a field that holds the tokens of a sequence; a prediction takes two of them."""

BatchSize = Annotated[int, Between(1, 2**24)]
"""The type of a field that holds a number of examples that are computed together."""

Seed = Annotated[int, Between(0, 2**32 - 1)]
"""The type of a field that holds a seed; devices would cut a larger one to 32 bits."""

Epsilon = Annotated[float, Between(0, 1, "(]")]
"""The type of a field that holds a small addition to a denominator."""

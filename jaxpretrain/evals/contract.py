"""What an evaluator gives to the loop."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np


@dataclass(frozen=True)
class Results:
    """Named results of one evaluation; names are full, such as `eval/sotu/loss`."""

    scalars: Mapping[str, float | None] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    images: Mapping[str, np.ndarray] = field(default_factory=dict)


Evaluator = Callable[[Any], Results]
"""Parameters on their mesh -> results. Must leave the parameters as they are."""


class EvalSet(Protocol):
    """Held-out examples."""

    name: str
    num_examples: int

    def batch(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Examples by index, arrays with first axis len(indices)."""
        ...

    def target_bytes(self, batch: Mapping[str, np.ndarray]) -> np.ndarray | None:
        """UTF-8 bytes that each example's targets stand for, int [n]; None when unknown."""
        ...

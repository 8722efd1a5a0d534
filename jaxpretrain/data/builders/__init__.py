"""Our own TFDS datasets: module `x` defines the builder of dataset `x`.

Builders stay in importable modules (TFDS takes a script's `__main__` for a package folder) and
use the array_record format, which is read without TensorFlow.
"""

from collections.abc import Iterator

Examples = Iterator[tuple[int, dict[str, object]]]
"""The examples of a split, each with its key."""

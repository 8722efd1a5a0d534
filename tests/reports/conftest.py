"""The histories of the tests of the diagnosis."""

from tests.diagnosis.conftest import history

__all__ = ["history"]

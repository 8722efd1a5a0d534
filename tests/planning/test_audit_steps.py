"""scripts/audit_steps.py: flags that ask for nothing, or for what a plan refuses."""

import re
from typing import Any

import pytest

from jaxpretrain.config.errors import InputError
from scripts import audit_steps
from scripts.audit_steps import CASES, planned


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--only=h101"], "--only=h101: part of no target; they are h100-80gb:8, "),
        (["--only=h100"], "no compiler for these targets: pip install"),
    ],
)
def test_a_table_without_rows_is_an_error(
    flags: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found(name: str) -> Any:
        return None

    monkeypatch.setattr(audit_steps, "find_spec", found)
    with pytest.raises(InputError, match=re.escape(message)):
        audit_steps.main(flags)


def test_what_a_plan_refuses_is_told_in_a_line(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="7B, 8 H100: the plan refuses this"):
        planned(CASES[0], ["--config.train.nope=3"])
    assert "nope" in capfd.readouterr().err

from pathlib import Path

import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.launch.clients import Client, deliver


def test_without_submit_it_is_printed(capsys: pytest.CaptureFixture[str]):
    assert deliver("text\n", Client("nosuch", ("nosuch",)), is_submitted=False) == 0
    assert capsys.readouterr().out == "text\n"


def test_the_client_gets_it_on_its_input(tmp_path: Path):
    client = Client("sh", ("sh", "-c", f"cat > '{tmp_path}/got'"))
    assert deliver("text\n", client, is_submitted=True) == 0
    assert (tmp_path / "got").read_text() == "text\n"
    assert deliver("", Client("sh", ("sh", "-c", "exit 9")), is_submitted=True) == 1
    assert deliver("", Client("sh", ("sh", "-c", "kill -9 $$")), is_submitted=True) == 1


def test_a_missing_client_is_one_line():
    with pytest.raises(InputError, match="--submit needs nosuch, which is not on this machine"):
        deliver("", Client("nosuch", ("nosuch",)), is_submitted=True)

import json

import jax
import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.coordinate_check import coordinates
from jaxpretrain.coordinate_check.__main__ import main
from tests.coordinate_check.test_coordinates import config as config

CONFIG = "--config=widths_nano"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--widths=64,128,256 or --depths=2,4,8 names the sizes"),
        (["--widths=64,x"], "--widths=64,x: 'x' is no size"),
        (["--widths=64,0"], "'0' is no size"),
        (["--depths=4,4"], "--depths=4,4: a size comes twice"),
        (["--widths=64,128", "--seeds=0"], "--seeds=0: must be positive"),
        (["--widths=64,128", "--config.model.base_width=24"], "no multiple of the head size"),
        (["--widths=64,128", "--config.model.scaling=mupp"], "mup"),
    ],
)
def test_bad_input_is_one_line(flags: list[str], message: str):
    with pytest.raises(InputError, match=message) as error:
        main([CONFIG, *flags])
    assert "\n" not in str(error.value)


def test_the_exit_code_is_the_verdict(tmp_path, capsys, monkeypatch, config):
    """Of a real check of two small widths; the verdict itself is given."""
    found = coordinates.check_coordinates(
        config, widths=(32, 64), depths=(), num_seeds=1, num_steps=2, devices=jax.devices()[:1]
    )
    asked = []

    def checked(config, **sizes):
        asked.append((config.model.scaling, sizes))
        return found | {"flat": is_flat}

    monkeypatch.setattr(coordinates, "check_coordinates", checked)
    page = tmp_path / "page.html"
    for is_flat, code in ((True, 0), (False, 3)):
        assert main([CONFIG, "--widths=32,64", "--json", f"--output={page}"]) == code
        assert json.loads(capsys.readouterr().out)["flat"] is is_flat
    assert asked[0] == ("mup", {"widths": [32, 64], "depths": [], "num_seeds": 4, "num_steps": 10})
    assert "Not flat under scaling completep" in page.read_text()

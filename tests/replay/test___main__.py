import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.replay.__main__ import main, make_parser


def test_flags_have_their_names():
    flags = make_parser().parse_args(
        ["--workdir=a", "--steps=3-5", "--from=2", "--without=4", "--without=5"]
    )
    assert (str(flags.workdir), flags.steps, flags.start) == ("a", "3-5", 2)
    assert flags.without == ["4", "5"] and flags.without_examples == []


def test_a_replay_needs_a_run_and_steps(tmp_path):
    with pytest.raises(InputError, match="--steps=A-B is required"):
        main([f"--workdir={tmp_path}"])
    with pytest.raises(InputError, match="--workdir"):
        main(["--steps=3-5"])
    with pytest.raises(InputError, match="is no run: it has no experiment.json"):
        main([f"--workdir={tmp_path}", "--steps=3-5"])

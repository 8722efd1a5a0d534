import subprocess
import sys

import pytest

from jaxpretrain import __main__ as commands
from jaxpretrain import __version__
from jaxpretrain.config.errors import InputError


def test_every_command_has_a_main_and_says_what_it_does(capsys: pytest.CaptureFixture):
    assert commands.main(["--help"]) == 0
    shown = capsys.readouterr().out
    for name, (_, purpose) in commands.COMMANDS.items():
        assert f"  {name} " in shown and purpose in shown
        with pytest.raises(SystemExit) as done:
            commands.main([name, "--help"])
        assert done.value.code == 0
        assert f"usage: jaxpretrain {name} " in capsys.readouterr().out


def test_the_version(capsys: pytest.CaptureFixture):
    assert commands.main(["--version"]) == 0
    assert capsys.readouterr().out == f"{__version__}\n"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("trian", "there is no command 'trian'. Did you mean 'train'?"),
        ("xyz", "there is no command 'xyz'. The commands are train, prepare, "),
    ],
)
def test_another_command_is_an_error(name: str, message: str):
    with pytest.raises(InputError, match=message):
        commands.main([name])


def test_a_command_runs_from_any_folder_on_a_packaged_config(tmp_path):
    command = [sys.executable, "-m", "jaxpretrain", "train", "--config=olmo_nano", "--help_config"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "model.d_model = 128\n" in done.stdout


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("ev", ["evaluate"]),
        ("train --work", ["--workdir"]),
        ("train --config olmo_nano_", ["olmo_nano_mixture"]),
        ("train --config = olmo_nano_", ["olmo_nano_mixture"]),  # bash makes three words of it
        ("train --config = olmo_nano --preflight", ["--preflight_only"]),
    ],
)
def test_bash_completes_commands_flags_and_configs(typed: str, offered: list[str]):
    words = f"COMP_WORDS=(jaxpretrain {typed}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))"
    script = f'{commands.completion("bash")}\n{words}; _jaxpretrain; echo "${{COMPREPLY[@]}}"'
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == offered


def test_completion_needs_a_shell_that_is_known():
    assert "#compdef jaxpretrain" in commands.completion("zsh")
    with pytest.raises(InputError, match="completion needs a shell: bash, zsh"):
        commands.completion("cmd")


@pytest.mark.parametrize("name", commands.COMMANDS)
def test_help_fits_80_columns(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit, match="0"):
        commands.main([name, "--help"])
    text = capsys.readouterr().out
    assert [line for line in text.splitlines() if len(line) > 80] == []

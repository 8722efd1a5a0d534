import errno
import os
import signal
import subprocess
import sys

import pytest

from jaxpretrain.config.command import Parser, run, split_overrides, split_paths
from jaxpretrain.config.errors import InputError


def exit_code(main) -> object:
    with pytest.raises(SystemExit) as exit_info:
        run(main)
    return exit_info.value.code


def raiser(error: BaseException):
    def main(argv: list[str]) -> None:
        raise error

    return main


def make_parser() -> Parser:
    parser = Parser()
    parser.add_argument("--config", required=True)
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--json", action="store_true")
    return parser


def error_of(parser: Parser, *argv: str) -> str:
    with pytest.raises(InputError) as error:
        parser.parse_args(argv)
    return str(error.value)


def test_run_passes_the_command_line_and_exits_with_the_code_of_main(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["command", "75"])
    assert exit_code(lambda argv: int(argv[0])) == 75


def test_run_exits_with_success_when_main_returns_nothing():
    assert not exit_code(lambda argv: None)


def test_run_reports_an_input_error_in_one_line_and_exits_with_2(capsys):
    assert exit_code(raiser(InputError("bad\nflag"))) == 2
    assert capsys.readouterr() == ("", "error: bad flag\n")


def test_run_exits_with_130_when_interrupted():
    assert exit_code(raiser(KeyboardInterrupt())) == 130


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_run_reports_a_full_or_forbidden_disk_in_one_line(capsys, number):
    error = OSError(number, os.strerror(number), "runs/a/experiment.json")
    assert exit_code(raiser(error)) == 1
    assert capsys.readouterr().err == f"error: runs/a/experiment.json: {os.strerror(number)}\n"


def test_run_leaves_other_errors_of_files_their_traceback():
    with pytest.raises(FileNotFoundError):
        run(raiser(FileNotFoundError(errno.ENOENT, "no such file", "a")))


def test_run_leaves_other_exceptions_their_traceback():
    with pytest.raises(ZeroDivisionError):
        run(raiser(ZeroDivisionError()))


PRINTING = """
import sys
from jaxpretrain.config.command import run
from jaxpretrain.config.errors import InputError

def main(argv):
    for number in range({lines}):
        print(number, file=sys.{stream})
    {end}

run(main)
"""


@pytest.mark.parametrize("lines", [1, 50_000])  # written when Python exits, and long before
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
@pytest.mark.parametrize("end", ["return 0", "raise InputError('bad flag')"])
def test_output_that_nobody_reads_ends_quietly(lines: int, unbuffered: str, stream: str, end: str):
    code = PRINTING.format(lines=lines, stream=stream, end=end)
    reader, writer = os.pipe()
    os.close(reader)
    other = "stderr" if stream == "stdout" else "stdout"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
        **{stream: writer, other: subprocess.PIPE},
        check=False,
    )
    os.close(writer)
    # Main gets to its end where what it has printed still waits to be written.
    has_ended = lines == 1 and not unbuffered and stream == "stdout"
    is_refused = has_ended and "raise" in end
    assert done.returncode == (2 if is_refused else 128 + signal.SIGPIPE)
    assert getattr(done, other) == (b"error: bad flag\n" if is_refused else b"")


def test_a_broken_pipe_of_the_programs_own_keeps_its_traceback():
    with pytest.raises(BrokenPipeError):
        run(raiser(BrokenPipeError()))


def test_overrides_are_taken_out_in_order():
    argv = ["--config=a.py", "--config.a.b=1", "--json", "--config.c=x=y", "--config.a.b="]
    rest, overrides = split_overrides(argv)
    assert rest == ["--config=a.py", "--json"]
    assert overrides == [("a.b", "1"), ("c", "x=y"), ("a.b", "")]


def test_an_override_without_a_value_is_refused():
    with pytest.raises(InputError, match=r"write --config\.path=value$"):
        split_overrides(["--config.path", "value"])


def test_known_flags_parse():
    args = make_parser().parse_args(["--config", "a.py", "--workdir=x", "--json"])
    assert (args.config, args.workdir, args.json) == ("a.py", "x", True)


def test_an_unknown_flag_names_the_nearest_one():
    message = error_of(make_parser(), "--config=a.py", "--workdir=x", "--jsn")
    assert message == "unknown flag --jsn. Did you mean --json?"


def test_a_misspelled_required_flag_is_unknown_rather_than_missing():
    message = error_of(make_parser(), "--config=a.py", "--wrkdir=x")
    assert message == "unknown flag --wrkdir. Did you mean --workdir?"


def test_an_unknown_flag_near_nothing_points_to_help():
    assert error_of(make_parser(), "--xyz") == "unknown flag --xyz. See --help."


@pytest.mark.parametrize("flag", ["--train.batch_size=8", "--confg.train.batch_size=8"])
def test_a_misspelled_override_names_the_right_one(flag):
    message = error_of(make_parser(), flag)
    assert message.endswith("Did you mean --config.train.batch_size?")


def test_flags_cannot_be_abbreviated():
    assert "unknown flag --work." in error_of(make_parser(), "--config=a.py", "--work=x")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--config=a.py"], "required: --workdir"),
        (["--config=a.py", "--workdir"], "--workdir: expected one argument"),
        (["--config=a.py", "--workdir=x", "y"], "unexpected argument 'y'"),
        (["--config=a.py", "--workdir=x", "-v"], "unknown flag -v."),
    ],
)
def test_other_bad_command_lines_are_input_errors(argv, message):
    assert message in error_of(make_parser(), *argv)


def test_what_follows_two_dashes_is_no_flag():
    parser = Parser()
    parser.add_argument("--tokenizer")
    parser.add_argument("files", nargs="*")
    assert parser.parse_args(["--tokenizer=t", "--", "--odd"]).files == ["--odd"]
    message = error_of(parser, "--tokeniser=t")
    assert message == "unknown flag --tokeniser. Did you mean --tokenizer?"


def test_paths_are_split_at_commas_but_for_those_of_a_name_that_exists(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert split_paths("a,b.txt,,*.md") == ["a", "b.txt", "*.md"]
    (tmp_path / "a,b.txt").touch()
    (tmp_path / "x, y, z").mkdir()
    assert split_paths("a,b.txt") == ["a,b.txt"]
    assert split_paths("c,a,b.txt,x, y, z,d") == ["c", "a,b.txt", "x, y, z", "d"]
    (tmp_path / "a").touch()
    assert split_paths("a,b.txt") == ["a", "b.txt"]
    assert split_paths("") == []

import atexit
from typing import Any

import jax
import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.parallel import distributed


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("host:1", None, None), "--num_processes and --process_id is missing"),
        (("host:1", 2, None), "--process_id is missing: --coordinator, --num_processes,"),
        ((None, None, 0), "--coordinator and --num_processes is missing"),
        (("host", 2, 0), "--coordinator=host: write HOST:PORT"),
        (("host:", 2, 0), "write HOST:PORT"),
        ((":12", 2, 0), "write HOST:PORT"),
        (("host:99999", 2, 0), "write HOST:PORT"),
        (("host:1", 2, 2), "--process_id=2: the ids of --num_processes=2 processes are 0 to 1"),
        (("host:1", 2, -1), "--process_id=-1"),
        (("host:1", 2, 1, 70000), "--coordinator_port=70000: ports are numbers from 1 to 65535"),
        (("host:1", 2, 1, None, 0.0), "--start_timeout=0: must be positive"),
    ],
)
def test_flags_that_do_not_fit_together_are_one_line(flags: Any, message: str):
    with pytest.raises(InputError) as error:
        distributed.start(*flags)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not jax.distributed.is_initialized()


def test_alone_there_is_nobody_to_wait_for(monkeypatch: pytest.MonkeyPatch, capsys: Any):
    """And an error passes as it is, and to a regular exit."""
    registered = []
    monkeypatch.setattr(atexit, "register", lambda *args: registered.append(args))
    distributed.start(None, None, None)
    assert distributed.is_primary() and not jax.distributed.is_initialized()
    assert distributed.exchange("name", "value") == ["value"]
    assert distributed.first_problem("name", None) is None
    error = InputError("one line")
    with (
        pytest.raises(InputError) as caught,
        distributed.leaving_at_failure(),
        distributed.fail_together("name") as same,
    ):
        same["config"] = {"seed": 1}
        raise error
    assert caught.value is error and not registered
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("error", "code"), [(InputError("x"), 2), (KeyboardInterrupt(), 130), (ValueError("x"), 1)]
)
def test_among_several_an_error_ends_the_process_at_once(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch
):
    registered = []
    monkeypatch.setattr(atexit, "register", lambda *args: registered.append(args))
    monkeypatch.setattr(distributed.global_state, "num_processes", 2)
    with pytest.raises(type(error)), distributed.leaving_at_failure():
        raise error
    assert registered == [(distributed._leave, code)]
    for agreed in (SystemExit(2), distributed.AgreedError("x")):  # all leave together
        with pytest.raises(type(agreed)), distributed.leaving_at_failure():
            raise agreed
    assert len(registered) == 1


def test_one_that_waits_in_vain_ends_with_code_1(capsys: Any):
    with pytest.raises(SystemExit) as end:
        distributed.start("127.0.0.1:9", 2, 1, None, 0.5)
    assert end.value.code == 1
    assert capsys.readouterr().err.startswith("error: process 1 on ")


def test_variables_of_another_job_are_refused_unless_flags_override_them(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "10.0.0.1:12")
    with pytest.raises(InputError, match="JAX_COORDINATOR_ADDRESS=10.0.0.1:12, but no launcher"):
        distributed.start(None, None, None)
    with pytest.raises(SystemExit):  # by hand: it looks for process 0
        distributed.start("127.0.0.1:9", 2, 1, None, 0.5)

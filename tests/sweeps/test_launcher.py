import os
import sys
import time

import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.sweeps.launcher import LocalLauncher, share_of


def python(code):
    return [sys.executable, "-c", code]


def wait(handle):
    while (code := handle.poll()) is None:
        time.sleep(0.01)
    return code


def test_output_goes_to_the_end_of_the_log(tmp_path):
    log = tmp_path / "arm" / "seed1.log"
    here = LocalLauncher(1, os.environ)
    for word in ("first", "second"):
        code = f"import sys; print({word!r}); print('bad', file=sys.stderr); sys.exit(7)"
        assert wait(here.start(python(code), log)) == 7
    assert log.read_text().split() == ["first", "bad", "second", "bad"]


def test_processes_share_cores_and_gpus(tmp_path, monkeypatch):
    pinned = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, cores: pinned.append(cores))
    here = LocalLauncher(2, os.environ, ["0", "3", "5"])
    code = "import os, time; print(os.environ['CUDA_VISIBLE_DEVICES'], flush=True); time.sleep(60)"
    first = here.start(python(code), tmp_path / "a.log")
    assert here.has_room
    second = here.start(python(code), tmp_path / "b.log")
    assert not here.has_room
    assert pinned == [[0, 1], [2, 3]]
    first.kill()
    assert wait(first) == -9
    assert here.has_room
    third = here.start(python("print('third')"), tmp_path / "c.log")
    assert pinned[2] == [0, 1]
    assert wait(third) == 0
    while not (tmp_path / "b.log").read_text():
        time.sleep(0.01)
    second.stop()
    assert wait(second) == -15
    assert (tmp_path / "b.log").read_text() == "3,5\n"


def test_each_run_needs_a_gpu():
    with pytest.raises(InputError, match="--jobs=3: there are 2 GPUs"):
        LocalLauncher(3, {}, ["0", "1"])


def test_shares_are_as_equal_as_can_be():
    assert [list(share_of(range(5), share, 3)) for share in range(3)] == [[0], [1, 2], [3, 4]]

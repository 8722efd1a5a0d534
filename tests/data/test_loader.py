import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from jaxpretrain.data.loader import PART_ROWS, end_with_parent, load_batches, load_in_workers


def test_batches_come_in_order():
    batches = load_batches(lambda step: {"step": np.array([step])}, 3, 40, prefetch=4)
    assert [int(batch["step"][0]) for batch in batches] == list(range(3, 40))


def test_no_steps_means_no_batches():
    assert list(load_batches(lambda step: {}, 5, 5)) == []


def test_reading_is_ahead_in_one_thread_and_bounded():
    threads, steps, third = set(), [], threading.Event()

    def read(step: int) -> dict[str, np.ndarray]:
        threads.add(threading.get_ident())
        steps.append(step)
        if step == 2:
            third.set()
        return {"step": np.array(step)}

    with load_batches(read, 0, 100, prefetch=3) as batches:
        assert third.wait(10)  # though nobody asked for a batch yet
        next(batches)
        next(batches)
    assert len(threads) == 1
    assert threading.get_ident() not in threads
    assert steps == list(range(len(steps))) and len(steps) <= 5


def test_an_error_is_raised_at_its_batch():
    def read(step: int) -> dict[str, np.ndarray]:
        if step == 2:
            raise OSError("the disk is gone")
        return {"step": np.array(step)}

    batches = load_batches(read, 0, 10)
    assert [int(next(batches)["step"]) for _ in range(2)] == [0, 1]
    with pytest.raises(OSError, match="the disk is gone"):
        next(batches)


def test_closing_ends_the_thread_and_the_iteration():
    started, release = threading.Event(), threading.Event()
    threads, steps = [], []

    def read(step: int) -> dict[str, np.ndarray]:
        threads.append(threading.current_thread())
        steps.append(step)
        started.set()
        assert release.wait(10)
        return {"step": np.array(step)}

    batches = load_batches(read, 0, 100)
    assert started.wait(10)
    batches.close()
    batches.close()
    release.set()
    threads[0].join(10)
    assert not threads[0].is_alive()
    assert list(batches) == []
    assert steps == [0]


def test_workers_read_what_a_thread_reads():
    """In batches of less than a part and of several, one after the other."""

    def samples(step: int) -> np.ndarray:
        return 1000 * step + np.arange(3 if step < 4 else 2 * PART_ROWS + 5)

    def read(samples: np.ndarray) -> dict[str, np.ndarray]:
        return {"samples": samples, "squares": np.stack([samples, samples**2], axis=1)}

    with load_in_workers(read, samples, 2, 7, num_workers=2) as batches:
        found = list(batches)
    assert len(found) == 5
    for step, batch in enumerate(found, 2):
        expected = read(samples(step))
        assert batch.keys() == expected.keys()
        for name, values in expected.items():
            assert type(batch[name]) is np.ndarray and batch[name].dtype == values.dtype
            np.testing.assert_array_equal(batch[name], values)
    assert multiprocessing.active_children() == []


def test_an_error_in_a_worker_is_raised_at_its_batch():
    def read(samples: np.ndarray) -> dict[str, np.ndarray]:
        if samples[0] == 3:
            raise OSError("the disk is gone")
        return {"samples": samples}

    with load_in_workers(read, lambda step: np.array([step]), 0, 9, num_workers=2) as batches:
        assert [int(next(batches)["samples"][0]) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(OSError, match="the disk is gone"):
            next(batches)
    assert multiprocessing.active_children() == []


SCRIPT = """
    import os, signal, sys, time
    import numpy as np
    import jax
    from jaxpretrain.data.loader import load_in_workers

    def read(samples):
        from jax._src import xla_bridge
        return {"of": np.array([os.getpid(), len(xla_bridge._backends)])}

    if __name__ == "__main__":
        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in background jobs
        jax.devices()
        pids = set()
        with load_in_workers(read, lambda step: np.array([step]), 0, 10**6, num_workers=2) as it:
            while len(pids) < 2:
                pid, num_backends = next(it)["of"]
                assert num_backends == 0
                pids.add(int(pid))
            try:
                print(*pids, flush=True)
                time.sleep(60)
            except KeyboardInterrupt:
                for _ in range(20):  # the batches go on while a run is saved
                    next(it)
                print("saved", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_no_worker_outlives_its_run(tmp_path: Path, number: signal.Signals):
    """Nor does one touch a device, or answer to Ctrl-C, which reaches the whole group."""
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "JAX_PLATFORMS": "cpu"}
    run = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )
    try:
        assert run.stdout
        workers = [int(pid) for pid in run.stdout.readline().split()]
        if number == signal.SIGINT:
            os.killpg(run.pid, number)
        else:
            run.kill()
        output, errors = run.communicate(timeout=30)
        assert len(workers) == 2, errors
        if number == signal.SIGINT:
            assert (output, errors, run.returncode) == ("saved\n", "", 0)
        deadline = time.monotonic() + 20
        while any(map(_is_alive, workers)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not any(map(_is_alive, workers))
    finally:
        if run.poll() is None:
            run.kill()
            run.wait()


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_process_without_a_parent_goes_on():
    end_with_parent()


def test_a_process_ends_when_its_parent_is_killed(tmp_path):
    """The child holds the pipe open for as long as it lives."""
    script = tmp_path / "parent.py"
    script.write_text(
        textwrap.dedent("""
            import multiprocessing, os, signal, time
            from jaxpretrain.data.loader import end_with_parent

            def work(ready):
                end_with_parent()
                ready.set()
                time.sleep(600)

            if __name__ == "__main__":
                context = multiprocessing.get_context("spawn")
                ready = context.Event()
                context.Process(target=work, args=(ready,)).start()
                assert ready.wait(60)
                os.kill(os.getpid(), signal.SIGKILL)
        """)
    )
    ended = subprocess.run([sys.executable, str(script)], stdout=subprocess.PIPE, timeout=90)
    assert ended.returncode == -9

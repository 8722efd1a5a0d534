import threading

import numpy as np
import pytest

from jaxpretrain.data.loader import load_batches


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


def test_waiting_is_counted():
    asked = threading.Event()

    def read(step: int) -> dict[str, np.ndarray]:
        asked.wait(0.05)
        return {"step": np.array(step)}

    batches = load_batches(read, 0, 2)
    assert batches.seconds_waited == 0
    list(batches)
    assert batches.seconds_waited > 0

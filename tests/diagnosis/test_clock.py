import random

import pytest

from jaxpretrain.diagnosis.clock import PARTS, Clock, Rate


class Time:
    def __init__(self):
        self.seconds = 1000.0

    def __call__(self):
        return self.seconds


def spend(time, clock, part, seconds):
    with clock.measure(part):
        time.seconds += seconds


@pytest.mark.parametrize("seed", range(20))
def test_parts_are_exclusive_and_add_up_to_the_wall_time(seed):
    rng, time = random.Random(seed), Time()
    clock = Clock(time)
    expected = dict.fromkeys(PARTS, 0.0)

    def live(part, depth):
        for _ in range(rng.randrange(4)):
            seconds = rng.random()
            time.seconds += seconds
            expected[part] += seconds
            if depth < 5:
                inner = rng.choice(PARTS)
                with clock.measure(inner):
                    live(inner, depth + 1)

    live("other", 0)
    assert clock.seconds() == pytest.approx(expected)
    assert sum(clock.seconds().values()) == pytest.approx(time.seconds - 1000)


def test_an_exception_ends_its_part_and_does_not_count_as_finished():
    time = Time()
    clock = Clock(time)
    with pytest.raises(RuntimeError), clock.measure("eval"):
        time.seconds += 3
        raise RuntimeError
    time.seconds += 4
    assert (clock.seconds()["eval"], clock.seconds()["other"]) == (3, 4)
    assert clock.mean("eval") == 0


def test_time_is_kept_across_restarts():
    time = Time()
    first = Clock(time)
    spend(time, first, "train", 10)
    spend(time, first, "eval", 2)
    state = first.state()

    second = Clock(time)
    time.seconds += 5  # start-up, before the checkpoint is there
    second.restore(state)
    spend(time, second, "eval", 4)
    seconds = second.seconds()
    assert (seconds["train"], seconds["eval"], seconds["other"]) == (10, 6, 5)
    assert second.mean("eval") == 3


def test_a_state_without_some_parts_is_restored():
    clock = Clock(Time())
    clock.restore({"train": 3.0})
    assert sum(clock.seconds().values()) == 3
    assert clock.state()["num_eval"] == 0


def test_rate_leaves_pauses_out_and_counts_waiting_for_data():
    time = Time()
    clock = Clock(time)
    rate = Rate(clock)
    rate.tick(0)
    for step in range(1, 11):
        spend(time, clock, "data_wait", 0.5)
        spend(time, clock, "train", 1.5)
        for part in ("compile", "eval", "save", "other"):
            spend(time, clock, part, 100)
        rate.tick(64 * step)
        assert rate.units_per_second() == 32


def test_rate_follows_a_change_of_speed_within_the_window():
    time = Time()
    clock = Clock(time)
    rate = Rate(clock, window=60)
    rate.tick(0)
    for step in range(1, 200):
        spend(time, clock, "train", 10 if step < 100 else 1)
        rate.tick(step)
        if step < 100 or step >= 160:
            assert rate.units_per_second() == pytest.approx(0.1 if step < 100 else 1)


def test_rate_of_steps_longer_than_the_window():
    time = Time()
    clock = Clock(time)
    rate = Rate(clock, window=1)
    for step in range(5):
        rate.tick(step)
        spend(time, clock, "train", 10 + step)
    assert rate.units_per_second() == pytest.approx(1 / 13)


def test_before_the_first_step_nothing_is_predicted():
    clock = Clock(Time())
    rate = Rate(clock)
    assert rate.eta(0, 100, num_evals=3) is None
    rate.tick(0)
    rate.tick(0)
    assert rate.units_per_second() is None and rate.eta(0, 100) is None


def test_a_start_from_anothers_checkpoint_without_time_predicts_nothing():
    rate = Rate(Clock(Time()))
    rate.tick(5000)
    assert rate.eta(5000, 6000) is None


def test_eta_is_exact_for_a_steady_run_from_its_first_step_and_across_a_restart():
    total_steps, every, startup = 40, 10, 7
    time = Time()
    finish = time.seconds + startup + 2 + total_steps * 3 + (1 + total_steps // every) * 20

    def session(clock, first_step, last_step):
        rate = Rate(clock)
        rate.tick(first_step)
        for step in range(first_step + 1, last_step + 1):
            evals_left = total_steps // every - (step - 1) // every
            if step > 1:
                eta = rate.eta(step - 1, total_steps, num_evals=evals_left)
                assert eta is not None and time.seconds + eta == pytest.approx(finish)
            spend(time, clock, "train", 3)
            rate.tick(step)
            if step % every == 0:
                spend(time, clock, "eval", 20)

    clock = Clock(time)
    time.seconds += startup
    spend(time, clock, "compile", 2)
    spend(time, clock, "eval", 20)
    session(clock, 0, 25)
    resumed = Clock(time)
    resumed.restore(clock.state())
    session(resumed, 25, 40)
    assert time.seconds == finish


def test_evaluations_and_saves_that_are_to_come_take_their_mean_time():
    time = Time()
    clock = Clock(time)
    rate = Rate(clock)
    for step in range(3):
        rate.tick(step)
        spend(time, clock, "train", 10)
    for part, seconds in (("eval", 4), ("eval", 6), ("save", 2)):
        spend(time, clock, part, seconds)
    assert rate.eta(2, 10) == pytest.approx(80)
    assert rate.eta(2, 10, num_evals=3) == pytest.approx(80 + 3 * 5)
    assert rate.eta(2, 10, num_evals=3, num_saves=4) == pytest.approx(80 + 3 * 5 + 4 * 2)

import pytest

from jaxpretrain.launch.rules import NOTHING_SAVED, Attempts, again_after, codes_of, newest_step


@pytest.mark.parametrize(
    ("code", "again"),
    [
        (0, "never"),
        (2, "never"),
        (3, "never"),
        (130, "never"),
        (75, "at once"),
        (1, "while progress"),
        (76, "while progress"),
        (134, "while progress"),  # aborted by JAX's coordination service
        (137, "while progress"),  # killed
    ],
)
def test_each_exit_code_has_one_answer(code: int, again: str):
    assert again_after(code) == again


def test_codes_are_listed_for_an_answer():
    assert codes_of("never") == [0, 2, 3, 130]
    assert codes_of("never", failures_only=True) == [2, 3, 130]
    assert codes_of("at once") == [75]


def test_crashes_without_progress_are_counted_and_progress_starts_anew():
    attempts = Attempts(max_restarts=2, newest=NOTHING_SAVED)
    assert attempts.goes_on(137, NOTHING_SAVED) and attempts.failures == 1
    assert attempts.goes_on(75, NOTHING_SAVED) and attempts.failures == 1
    assert attempts.goes_on(137, 10) and attempts.failures == 0
    assert attempts.goes_on(1, 10) and attempts.goes_on(1, 10)
    assert not attempts.goes_on(1, 10)
    assert attempts.goes_on(75, 20) and attempts.failures == 0


def test_what_is_complete_or_cannot_be_cured_is_never_started_again():
    for code in (0, 2, 3, 130):
        assert not Attempts(max_restarts=9, newest=0).goes_on(code, 10)


def test_the_newest_step_is_that_of_a_finished_checkpoint(tmp_path):
    assert newest_step(tmp_path) == NOTHING_SAVED
    for name in ("9", "10", "11.unfinished"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert newest_step(tmp_path) == 10

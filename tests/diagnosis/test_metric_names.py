import math

import pytest

from jaxpretrain.diagnosis.history import read_history
from jaxpretrain.diagnosis.metric_names import (
    bits_per_byte,
    evaluation_sets,
    improvements,
    lower_is_better,
    perplexity,
    standard_error_name,
    task_metric_names,
)
from jaxpretrain.storage.jsonl import JsonlWriter


def test_a_loss_in_other_units():
    assert bits_per_byte(math.log(2) * 24, 8) == pytest.approx(3)
    assert bits_per_byte(5.0, 0) is None


def test_the_perplexity_of_a_loss_that_no_float_holds_is_infinite():
    assert perplexity(math.log(7)) == pytest.approx(7)
    assert perplexity(5384.0) == math.inf == perplexity(math.inf)
    assert math.isnan(perplexity(math.nan))


@pytest.fixture
def history(tmp_path):
    writer = JsonlWriter(tmp_path / "metrics.jsonl")
    for step in range(8):
        writer.write(
            step,
            {
                "train/loss": 9.0,
                "eval/digits/loss": 1.0 - 0.1 * step,
                "eval/digits/probe": 0.1 * step,
                "eval/digits/probe_stderr": 0.01,
                "eval/digits/probe_random_init": 0.1,
                "eval/digits/probe_random_init_stderr": 0.01,
            },
        )
    writer.close()
    return read_history(tmp_path / "metrics.jsonl")


def test_sets_have_a_loss_and_tasks_a_standard_error(history):
    """An encoder that never learns is no task that fails to improve."""
    assert evaluation_sets(history) == ["digits"]
    assert task_metric_names(history) == ["eval/digits/probe"]
    assert standard_error_name("eval/digits/probe") == "eval/digits/probe_stderr"


def test_which_way_is_up():
    assert lower_is_better("eval/sotu/bits_per_byte") and not lower_is_better("eval/piqa/acc")


def test_a_clear_trend_is_improbable_by_chance(history):
    found = improvements(history, 0)
    assert found["eval/digits/loss"] < 1e-3 and found["eval/digits/probe"] < 1e-3
    assert found.get("eval/digits/probe_random_init", 1.0) > 0.1

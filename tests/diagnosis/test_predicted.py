import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.diagnosis.predicted import FILE, final_value, how_far, read_prediction


def test_the_end_of_a_metric_is_a_value_after_all_steps(history):
    run = history([10, 50, 100], {"eval/a/loss": [5, 4, 3], "train/loss": [9, 8, 7]})
    assert final_value(run, "eval/a/loss", 100) == 3
    assert final_value(run, "eval/a/loss", 100, last=2) == 3.5
    assert final_value(run, "eval/a/loss", 101) is None
    assert final_value(run, "eval/b/loss", 100) is None
    assert final_value(run, "train/loss", 100, last=3) == 7
    assert final_value(run, "train/loss", 200) is None


def test_a_damaged_prediction_is_named(tmp_path):
    assert read_prediction(tmp_path) is None
    (tmp_path / FILE).write_text('{"metric": "train/loss", "loss": "low"}')
    with pytest.raises(InputError, match=FILE):
        read_prediction(tmp_path)


def test_a_prediction_inside_of_the_points_goes_beyond_none():
    assert how_far(30.0) == "extrapolates 30.0 times beyond the largest run"
    assert "0.50 times those of the largest run" in how_far(0.5)

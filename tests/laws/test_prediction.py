import json

import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.diagnosis.predicted import read_prediction
from jaxpretrain.laws.analysis import analyse
from jaxpretrain.laws.prediction import (
    PredictionTarget,
    parse_target,
    predict,
    require_place,
    write_prediction,
)
from tests.laws.published import LAW, ladder, made
from tests.sweeps.tiny import write_config

LARGE = PredictionTarget("13B", 13_202_396_160, 5e12)


@pytest.fixture(scope="module")
def prediction():
    return predict(
        analyse(made(0.002), 100), PredictionTarget("x", 3e9, 3e11), last=1, hindcast=False
    )


def test_the_interval_holds_the_truth_and_says_how_far_it_carries(prediction):
    assert prediction["low"] < LAW.loss(3e9, 3e11) < prediction["high"]
    assert prediction["extrapolation"] == pytest.approx(9)
    assert prediction["points"] == made(0.002).hash


def test_the_large_run_of_the_ladder_lies_inside():
    found = predict(analyse(ladder(), 100), LARGE, last=5, hindcast=False)
    assert found["loss"] == pytest.approx(2.34437, abs=5e-6)
    assert found["low"] < 2.437876 < found["high"]


def test_a_target_is_a_config_or_two_numbers(tmp_path):
    target = parse_target(str(write_config(tmp_path)), (("train.duration", "9 steps"),))
    assert target.tokens == 9 * 8 * 16
    assert parse_target("n=1e9,d=2e10") == PredictionTarget("n=1e9,d=2e10", 1e9, 2e10)
    for text in ("n=1e9,d=many", "n=-1,d=1e9"):
        with pytest.raises(InputError, match="write a config, or"):
            parse_target(text)


def test_nothing_is_predicted_about_a_run_that_has_begun(tmp_path, prediction):
    folder = tmp_path / "large"
    assert not require_place(folder, hindcast=False)
    path = write_prediction(folder, prediction)
    assert json.loads(path.read_text()) == prediction
    assert (read := read_prediction(folder)) is not None
    assert read.loss == prediction["loss"]
    assert not require_place(folder, hindcast=True)
    (folder / "metrics.jsonl").touch()
    with pytest.raises(InputError, match="has already begun"):
        require_place(folder, hindcast=False)
    with pytest.raises(InputError, match="stays as it is"):
        require_place(folder, hindcast=True)
    write_prediction(folder, prediction | {"hindcast": True})
    assert require_place(folder, hindcast=True)

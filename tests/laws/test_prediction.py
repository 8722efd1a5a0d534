import json
from dataclasses import replace

import numpy as np
import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.diagnosis.predicted import read_prediction
from jaxpretrain.laws.analysis import Analysis, analyse
from jaxpretrain.laws.fits import fit_huber, resamplings
from jaxpretrain.laws.prediction import (
    PredictionTarget,
    doubts,
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


@pytest.mark.slow
def test_the_interval_holds_new_runs_about_as_often_as_it_says():
    exact, target, random = made(), PredictionTarget("x", 2e9, 2e11), np.random.default_rng(5)
    inside = 0
    for _ in range(60):
        noise = np.exp(0.003 * random.normal(size=17))
        points = replace(exact, losses=exact.losses * noise[:16])
        fit = fit_huber(points, resamplings(80, points))
        said = predict(Analysis(points, fit, None, None, {}), target, last=1, hindcast=False)
        inside += said["low"] <= LAW.loss(2e9, 2e11) * noise[16] <= said["high"]
    assert inside >= 52  # 57 of 60 are 95 %


@pytest.mark.parametrize(
    ("parameters", "tokens", "words"),
    [
        (1e12, 1e8, ["1000 times more parameters", "10.0 times fewer tokens"]),
        (2e9, 2e11, []),
        (1e8, 1e10, []),
        (1e7, 1e13, ["100 times more tokens"]),
    ],
)
def test_sizes_and_lengths_far_from_the_points_are_said(parameters, tokens, words):
    lines = doubts(made(), PredictionTarget("x", parameters, tokens))
    assert len(lines) == len(words)
    assert all(word in line for word, line in zip(words, lines, strict=True))


def test_a_target_is_a_config_or_two_numbers(tmp_path):
    target = parse_target(str(write_config(tmp_path)), (("train.duration", "9 steps"),))
    assert target.tokens == 9 * 8 * 16
    assert parse_target("n=1e9,d=2e10") == PredictionTarget("n=1e9,d=2e10", 1e9, 2e10)
    for text in ("n=1e9,d=many", "n=-1,d=1e9", "n=13B,d=5T", "n=1e9", "d=5e12,n=13e9", "n=1,c=9"):
        with pytest.raises(InputError, match="write a config, or"):
            parse_target(text)
    with pytest.raises(InputError, match="--config.seed: .* is no config to change"):
        parse_target("n=1e9,d=2e10", (("seed", "3"),))


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
    with pytest.raises(InputError, match="holds the run .*large; name the folder of the run"):
        require_place(tmp_path, hindcast=False)
    write_prediction(folder, prediction | {"hindcast": True})
    assert require_place(folder, hindcast=True)

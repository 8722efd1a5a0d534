from dataclasses import replace

from jaxpretrain.laws.analysis import analyse, describe
from jaxpretrain.laws.prediction import PredictionTarget, predict
from jaxpretrain.laws.told import tell
from tests.laws.published import made


def test_all_that_is_known_is_told():
    points = made(0.001)
    points = replace(points, tasks={"arc/acc": (points.losses / 4, 1 / points.losses)})
    found = analyse(points, 5)
    document = describe(found, [1e20])
    document["prediction"] = predict(
        found, PredictionTarget("x", 1e10, 1e12), last=1, hindcast=True
    )
    text = "\n".join(tell(document))
    assert "16 points of loss" in text
    assert "variable_projection" in text
    assert "\nbits of arc/acc" in text
    assert "  eval/arc/bpb 0.5" in text
    assert "1e+20" in text
    assert "Hindcast for 10B parameters and 1T tokens: loss 2.1" in text
    assert "extrapolates 100 times beyond the largest run" in text


def test_optima_are_told_without_a_law():
    text = "\n".join(tell(describe(analyse(made(), 5, are_optima=True))))
    assert "N grows as C to the" in text
    assert "alpha" not in text

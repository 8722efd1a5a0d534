import json

from jaxpretrain.laws.analysis import analyse, describe
from jaxpretrain.laws.prediction import PredictionTarget, predict
from jaxpretrain.reports.page import write_scaling
from jaxpretrain.reports.scaling import scaling_sections
from tests.laws.published import isoflop, made
from tests.reports.conftest import figures

SCORE = {"name": "large", "loss": 2.0, "low": 1.9, "high": 2.1, "measured": 2.2, "error": -0.09}


def test_the_page_draws_what_the_document_says(tmp_path):
    found = analyse(isoflop(), 3)
    document = describe(found, [1e18])
    document["prediction"] = predict(
        found, PredictionTarget("</script>", 1e9, 1e11), last=1, hindcast=False
    )
    document["scored"] = [SCORE | {"is_inside": False, "hindcast": False}]
    write_scaling(document, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    drawn = figures(text)
    assert {*drawn} == {
        "scaling_loss", "scaling_residuals", "scaling_isoflop", "scaling_best"
    }  # fmt: skip
    assert len(drawn["scaling_isoflop"]["traces"]) == 24
    assert "The prediction for 1B parameters and 100B tokens is" in text
    assert "Predicted and measured" in text
    assert "-9.00%" in text


def test_a_page_without_parabolas_or_a_prediction_is_whole():
    top, sections = scaling_sections(json.loads(json.dumps(describe(analyse(made(), 3)))))
    assert top == ""
    drawn = sections["Curves"]
    assert not isinstance(drawn, str)
    assert [chart.key for chart in drawn] == ["scaling_loss", "scaling_residuals"]
    top, sections = scaling_sections(describe(analyse(made(), 3, are_optima=True)))
    assert sections["Compute-optimal sizes"] == sections["Single points"] == ""

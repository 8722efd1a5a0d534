import json

from jaxpretrain.reports.coordinates import coordinate_sections
from jaxpretrain.reports.page import write_coordinates
from tests.reports.conftest import figures

SIZES = [
    {
        "axis": "width",
        "size": size,
        "kind": kind,
        "quantity": "activation/blocks",
        "layers": [[start, 2.0 * size, 4.0], [start, 4.0 * size, 8.0]],
    }
    for size in (64, 128)
    for kind, start in (("size", 1.0), ("change", None))
]
DOCUMENT = {
    "scaling": "mup",
    "num_steps": 2,
    "widths": [64, 128],
    "depths": [],
    "slopes": [
        {
            "axis": "width",
            "kind": "change",
            "quantity": "</script>",
            "layer": 0,
            "slopes": [None, 1.0, 0.0],
        }
    ],
    "max_abs_slope": 0.25,
    "max_initial_slope": 0.01,
    "flat": False,
    "sizes": SIZES,
}


def test_the_page_draws_means_over_layers_by_step(tmp_path):
    write_coordinates(DOCUMENT, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    drawn = figures(text)
    assert {*drawn} == {"width_change_0", "width_size_0"}
    first, second = drawn["width_change_0"]["traces"]
    assert (first["x"], first["y"]) == ([64, 128], [192.0, 384.0])
    assert (second["name"], second["y"]) == ("step 2", [6.0, 6.0])
    assert drawn["width_size_0"]["traces"][0]["y"] == [1.0, 1.0]
    assert "the largest slope of a change is 0.250" in text
    assert "Not flat under scaling mup" in text
    assert "&lt;/script&gt;" in text


def test_a_flat_result_says_so():
    top, sections = coordinate_sections(json.loads(json.dumps(DOCUMENT | {"flat": True})))
    assert "Flat under scaling mup" in top
    assert "+1.000" in str(sections["Slopes"])


def test_a_slope_that_is_unknown_is_named():
    top, _ = coordinate_sections(DOCUMENT | {"max_abs_slope": None})
    assert "the largest slope of a change is unknown" in top

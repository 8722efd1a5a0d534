import csv
import io
import re

import numpy as np
import pytest

from jaxpretrain.reports.comparison import MOST_FIELDS, as_csv, comparison
from tests.reports.conftest import STEPS, run_with


def sweep(history, **more):
    return [
        run_with(
            history,
            f"<r{n}>",
            config={"optim": {"peak": peak}, "seed": n} | more.get(f"r{n}", {}),
            train__loss=n + 0.0 * STEPS,
            eval__sotu__loss=np.where(STEPS == 500, 1.0, 2.0 + n),
            train__tokens=STEPS * 100,
        )
        for n, peak in enumerate((1e-3, 1e-3, 1e-2))
    ]


def test_the_csv_has_what_differs_and_what_came_of_it(history):
    first, *others = csv.DictReader(io.StringIO(as_csv(sweep(history))))
    assert first | {"verdict": ""} == {
        "run": "<r0>",
        "seed": "0",
        "optim.peak": "0.001",
        "training loss, last 10%": "0.0",
        "sotu loss, final": "2.0",
        "sotu loss, best": "1.0",
        "tokens": "100000.0",
        "time": "",
        "verdict": "",
    }
    assert [row["optim.peak"] for row in others] == ["0.001", "0.01"]


def test_the_table_sorts_by_numbers_and_escapes_names(history):
    html = comparison(sweep(history))
    assert "<r0>" not in html and "&lt;r0&gt;" in html
    assert '<th scope="col"><button title="optim.peak">peak</button></th>' in html
    assert '<td data-value="100000.0">100k</td>' in html
    assert html.count('data-color="{&quot;at&quot;: 0.0}"') == 2


def test_equal_configs_have_a_mean_with_its_spread(history):
    (row,) = re.findall(r"<tr><td>peak .*?</tr>", comparison(sweep(history)))
    cells = re.findall("<td>(.*?)</td>", row)
    assert cells == ["peak 0.001", "2", "0.500 ± 0.71", "2.500 ± 0.71", "1.000 ± 0.0"]
    assert "mean ±" not in comparison(sweep(history)[1:])


def test_many_different_fields_stand_below_the_table(history):
    many = {f"field{n}": n for n in range(MOST_FIELDS)}
    html = comparison(sweep(history, r0=many))
    assert f"<summary>{MOST_FIELDS + 2} fields differ</summary>" in html
    assert 'title="optim.peak"' not in html
    assert "field0" in as_csv(sweep(history, r0=many))


@pytest.mark.parametrize("paths", [("a.peak", "b.peak")])
def test_fields_of_the_same_name_keep_their_paths(history, paths):
    runs = [
        run_with(history, str(n), config={"a": {"peak": n}, "b": {"peak": n}}) for n in range(2)
    ]
    html = comparison(runs)
    assert all(f'<button title="{path}">{path}</button>' in html for path in paths)

from jaxpretrain.reports.parts import plot, table


def test_cells_are_plain_text():
    text = table(["a<b", "c"], [["<i>", "2"]])
    assert '<th scope="col">a&lt;b</th>' in text and "<td>&lt;i&gt;</td><td>2</td>" in text


def test_a_figure_has_a_place_of_its_height():
    assert plot("loss", 50) == '<div class="plot" id="plot-loss" style="min-height:50px"></div>'

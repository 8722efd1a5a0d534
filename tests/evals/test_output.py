import json
import math

from jaxpretrain.display.wording import format_table
from jaxpretrain.evals.contract import Items, Results
from jaxpretrain.evals.output import CheckpointResults, to_csv


def test_numbers_that_are_not_finite_are_null_and_those_shown_have_few_digits():
    numbers = {"loss": 4335.1133, "perplexity": math.inf, "bits_per_byte": None, "num_tokens": 2259}
    metrics = {"a": numbers | {"olmo_loss": math.nan}}
    rows = [("set", *metrics["a"]), ("a", *metrics["a"].values())]
    items = Items({"perplexity": metrics}, [*format_table(rows)])
    outcome = CheckpointResults(20, [Results(items=items)])
    shown = json.loads(json.dumps(outcome.document(), allow_nan=False))["perplexity"]["a"]
    assert (shown["loss"], shown["perplexity"], shown["olmo_loss"]) == (4335.1133, None, None)
    assert outcome.table().splitlines()[-1].split() == ["a", "4335.1", "inf", "-", "2,259", "nan"]
    assert "20,perplexity,a,perplexity,\n" in to_csv([outcome])

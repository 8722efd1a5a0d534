import numpy as np

from jaxpretrain.diagnosis.intent import Plan
from jaxpretrain.reports.runs import Run, read_run
from jaxpretrain.reports.words import cards, findings, verdict
from tests.reports.conftest import make_run

PLAN = Plan(20, [], lambda s: 0 * np.asarray(s) + 1e-3)


def test_a_short_run_is_shown_with_the_loss_it_has_come_to_in_a_few_digits(history):
    steps = np.arange(1, 21)
    rising = history(steps, {"train/loss": 6.2 * 4.0**steps, "eval/a/loss": 1e300 + 0.0 * steps})
    run = Run("a", rising, PLAN, {}, {}, [], now=20.0)
    shown = cards(run)
    assert (
        "training loss at step 20</span><b>6.817e+12</b>" in shown and "<b>1.000e+300</b>" in shown
    )
    assert run.severity == "error"
    assert "The loss has risen from" in verdict(run)


def test_the_evidence_of_a_finding_is_in_words(tmp_path):
    shown = findings(read_run(make_run(tmp_path / "run", "divergence")), [])
    assert "relative error 0.0" in shown and "relative_error" not in shown
    assert "; step 185<" in shown and "; steps 168 to 176<" in shown

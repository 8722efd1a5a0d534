import numpy as np
import pytest

from jaxpretrain.diagnosis.intent import TrainingPlan
from jaxpretrain.diagnosis.watch import ROWS, Watch, findings_over_time

PLAN = TrainingPlan(1000, [("warmup", 0), ("decay", 40)], lambda s: 0 * np.asarray(s) + 1e-3, None)


def feed(watch, history, names, *, last=np.inf):
    """Hands a history over, line by line; returns the lines of the log with their steps."""
    rows = sorted(
        (float(time), int(step), name, float(value))
        for name in names
        for step, time, value in zip(
            history[name].steps, history[name].times, history[name].values, strict=True
        )
    )
    lines: dict[tuple[float, int], dict[str, float | None]] = {}
    for time, step, name, value in rows:
        lines.setdefault((time, step), {})[name] = None if np.isnan(value) else value
    return [
        (step, news)
        for (time, step), metrics in lines.items()
        if step <= last
        for news in watch.update(step, time, metrics)
    ]


def test_a_note_is_said_once(recorded):
    history, plan = recorded("healthy_triangular")
    said = feed(Watch(plan, now=lambda: 0.0), history, ["train/loss", "train/learning_rate"])
    ((come, note),) = said  # that the warm-up is no longer news, is none
    assert (come, note.has_come_up, note.finding.name) == (40, True, "warmup_ended")
    assert note.line.startswith("note: warm-up ended. The warm-up ended at step 40")


def test_a_warning_is_said_once_when_it_appears_and_once_when_it_clears(recorded):
    history, plan = recorded("spike")
    said = feed(Watch(plan, now=lambda: 0.0), history, ["train/loss"])
    spike = [(step, news) for step, news in said if news.finding.name == "spike"]
    assert [news.has_come_up for _, news in spike][-2:] == [True, False]
    step, over = spike[-1]
    assert over.line == f"note: spike (step 200): no longer so at step {step:,}"


def test_a_note_that_comes_and_goes_is_said_once():
    watch = Watch(PLAN, now=lambda: 0.0)
    said = []
    for step in range(0, 600, 50):  # task metrics move, and stand still, by turns
        loss = {"train/loss": 3.0, "eval/a/loss": 3.0}
        score = {
            "eval/arc/accuracy": 0.3 + 0.4 * (step // 100 % 2),
            "eval/arc/accuracy_stderr": 0.01,
        }
        said += watch.update(step, step, loss | score)
    assert [n.finding.name for n in said].count("evaluation_within_noise") == 1
    assert all(news.has_come_up for news in said)


def test_a_run_that_goes_on_does_not_hear_again_what_it_was_told(recorded):
    history, plan = recorded("healthy_triangular")
    watch = Watch(plan, history.until(45), now=lambda: 0.0)
    names = ["train/loss", "train/learning_rate"]
    rest = {name: history[name].between(46, 400) for name in names}
    said = feed(watch, type(history)(rest), names)
    assert said == []


def test_a_loss_that_is_no_number_is_judged_at_once(recorded):
    history, plan = recorded("bad_batch")
    clock = iter(float(i) for i in range(10**6))  # judging takes a second and so waits for 100
    watch = Watch(plan, now=lambda: next(clock))
    said = feed(watch, history, ["train/loss", "train/grad_norm"])
    assert [(step, news.finding.severity) for step, news in said][-1] == (150, "error")


def test_judging_takes_a_hundredth_of_the_time():
    seconds = 0.0
    judged = []

    def now() -> float:
        return seconds

    class Costly(Watch):
        def _history(self):
            nonlocal seconds
            judged.append(seconds)
            seconds += 0.5
            return super()._history()

    watch = Costly(PLAN, now=now)
    for step in range(1, 500):
        watch.update(step, seconds, {"train/loss": 3.0})
        seconds += 1.0
    assert 0.5 * len(judged) <= 0.011 * seconds + 0.5


def test_layers_are_kept_and_thinned_as_one():
    watch = Watch(PLAN, now=lambda: 0.0)
    watch._next = np.inf
    for step in range(1, ROWS):
        watch.add(step, step, {"signals/x/blocks": np.array([step, -step, 2 * step, np.nan])})
    series = watch._history()["signals/x/blocks"]
    assert series.values.shape[1] == 4 and series.values.size <= ROWS
    np.testing.assert_array_equal(series.values[:, 0], series.steps)
    np.testing.assert_array_equal(series.values[:, 1], -series.steps)
    assert series.steps[0] == 1 and series.steps[-1] == ROWS - 1


def test_what_earlier_sessions_saw_of_layers_is_known(recorded):
    history, plan = recorded("attention_logits_growing")
    watch = Watch(plan, history.until(300), now=lambda: 0.0)
    name = "signals/attention_logit/blocks"
    np.testing.assert_array_equal(watch._history()[name].values, history.until(300)[name].values)
    news = watch.update(301, history.span[1], {"train/loss": 5.0})
    assert "attention_logits_growing" not in [piece.finding.name for piece in news]


def test_memory_is_bounded_and_the_whole_run_is_kept():
    watch = Watch(PLAN, now=lambda: 0.0)
    watch._next = np.inf
    for step in range(1, 20 * ROWS):
        watch.update(step % 1000, step, {"train/loss": step})
    values = watch._history()["train/loss"].values
    assert len(values) <= ROWS
    assert values[0] == 1 and values[-1] == 20 * ROWS - 1
    assert np.all(np.diff(values) > 0)
    assert values[-200:].tolist() == pytest.approx(np.arange(20 * ROWS - 200, 20 * ROWS))


def test_what_has_passed_is_told_as_past(history):
    plan = TrainingPlan(600, [], lambda s: 0 * np.asarray(s) + 1e-3)
    steps = np.arange(1, 601)
    loss = 5 - 0.002 * steps + 0.02 * np.random.default_rng(0).normal(size=600)
    loss[200:320] += 4
    found = findings_over_time(history(steps, {"train/loss": loss}), plan)
    (finding,) = (one for one in found if one.name == "divergence")
    assert (finding.severity, finding.is_over) == ("error", True)
    assert 160 <= finding.first <= 201


def test_notes_of_the_past_are_left_out(recorded):
    history, plan = recorded("healthy_triangular")
    assert [f.name for f in findings_over_time(history.until(50), plan)] == ["warmup_ended"]
    assert findings_over_time(history, plan) == []


def test_what_holds_is_told_once(recorded):
    history, plan = recorded("clipping")
    findings = findings_over_time(history, plan)
    assert [f.name for f in findings if not f.is_over] == ["always_clipping"]
    assert len({f.key for f in findings}) == len(findings)

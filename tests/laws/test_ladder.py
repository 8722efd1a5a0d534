import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.laws.ladder import make_ladder, parse_numbers
from jaxpretrain.laws.law import FLOPS
from jaxpretrain.laws.sizes import configured, size_of
from jaxpretrain.train.experiment import resolve

ROOT = ("data.root", "nowhere")


def test_the_runs_of_a_ladder_are_those_of_the_config():
    ladder = make_ladder("olmo_ladder", ["20m", "60m"], multiples=[1, 2.5], shared=[ROOT])
    assert [arm.name for arm in ladder.arms] == ["20m-1x", "20m-2.5x", "60m-1x", "60m-2.5x"]
    for run, arm in zip(ladder.runs(), ladder.arms, strict=True):
        assert resolve(ladder.experiment(run)) == configured(f"olmo_ladder:{arm.name}", (ROOT,))


def test_each_size_runs_at_each_budget():
    ladder = make_ladder("olmo_ladder", ["20m", "60m"], budgets=[1e17, 4e17], shared=[ROOT])
    sizes = [size_of(resolve(ladder.experiment(run))) for run in ladder.runs()]
    flops = [FLOPS * size.parameters * size.tokens for size in sizes]
    assert flops == pytest.approx([1e17, 4e17] * 2, rel=0.01)


def test_a_run_that_ends_in_its_warm_up_is_no_rung():
    with pytest.raises(InputError, match=r"60m-0\.00002x: ends in its warm-up, after \d+ steps"):
        make_ladder("olmo_ladder", ["60m", "20m"], multiples=[2e-5], shared=[ROOT])
    warmup = ("optim.schedule.warmup", "0 steps")
    ladder = make_ladder("olmo_ladder", ["60m", "20m"], multiples=[0.02], shared=[ROOT, warmup])
    assert [arm.name for arm in ladder.arms] == ["60m-0.02x", "20m-0.02x"]


def test_the_other_rule_changes_batch_and_learning_rate():
    ladder = make_ladder("olmo_ladder", ["20m", "60m"], rule="step_law", shared=[ROOT])
    first, _ = (ladder.experiment(run) for run in ladder.runs())
    assert first.optim.schedule.peak == pytest.approx(1.79 * 20e6**-0.713 * 4e8**0.307)
    assert first.train.batch_size == 8 * round(0.58 * 4e8**0.571 / 2048 / 8)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: make_ladder("olmo_ladder", ["20m", "61m"]), "Did you mean '60m'"),
        (lambda: make_ladder("olmo_ladder", ["20m", "20m"]), "20m-1x is there twice"),
        (lambda: make_ladder("olmo_ladder", ["20m"]), "one run is no ladder"),
        (lambda: make_ladder("olmo_ladder", ["20m", "60m"], rule="step_lw"), "'step_law'"),
        (lambda: parse_numbers("--budgets", "1e15,x"), "--budgets=1e15,x"),
        (lambda: parse_numbers("--budgets", "-1"), "positive"),
    ],
)
def test_bad_input_is_one_line(call, words):
    with pytest.raises(InputError, match=words):
        call()

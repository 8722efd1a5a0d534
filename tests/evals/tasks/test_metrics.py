import math

import numpy as np
import pytest

from jaxpretrain.evals.tasks.metrics import Scored, f1, standard_error, task_metrics
from jaxpretrain.evals.tasks.task import Choice, Item, Task


def _scored(
    texts: list[str],
    conditional: list[float],
    answer: int = 0,
    unconditional: list[float] | None = None,
) -> Scored:
    item = Item("q", tuple(Choice("c", text) for text in texts), answer)
    given = None if unconditional is None else np.array(unconditional)
    return Scored(item, np.array(conditional), given)


def _metrics(metric, scored: list[Scored]) -> dict[str, float]:
    return task_metrics(Task("t", metric, tuple(s.item for s in scored)), scored)


def test_acc_takes_the_largest_sum_and_the_first_of_equals():
    items = [
        _scored([" a", " b"], [-1.0, -2.0], answer=0),
        _scored([" a", " b"], [-2.0, -1.0], answer=0),
        _scored([" a", " b"], [-1.0, -1.0], answer=0),
        _scored([" a", " b"], [-1.0, -1.0], answer=1),
    ]
    assert _metrics("acc", items)["acc"] == 2 / 4


def test_len_norm_is_by_character_with_and_without_the_space():
    # By character without the space -4/4 against -5/6; with it -4/5 against -5/7: both the second.
    metrics = _metrics("len_norm", [_scored([" four", " sixsix"], [-4.0, -5.0], answer=1)])
    assert (metrics["acc"], metrics["len_norm"], metrics["len_norm_v2"]) == (0, 1, 1)
    # -1/1 against -1.9/2 without the space; with it -1/2 against -1.9/3.
    metrics = _metrics("len_norm", [_scored([" a", " bb"], [-1.0, -1.9], answer=1)])
    assert (metrics["len_norm"], metrics["len_norm_v2"], metrics["primary"]) == (1, 0, 1)


def test_ce_loss_is_by_character_and_bpb_by_byte_of_the_right_answer():
    metrics = _metrics("acc", [_scored([" é", " bb"], [-math.log(2) * 6, -9.0])])
    assert metrics["ce_loss"] == pytest.approx(math.log(2) * 6 / 1)
    assert metrics["ce_loss_v2"] == pytest.approx(math.log(2) * 6 / 2)
    assert metrics["bpb"] == pytest.approx(6 / 2)
    assert metrics["bpb_v2"] == pytest.approx(6 / 3)


def test_a_lone_character_keeps_its_length():
    metrics = _metrics("ce_loss", [_scored(["a"], [-3.0])])
    assert metrics["ce_loss"] == metrics["ce_loss_v2"] == 3.0


def test_pmi_dc_is_the_ratio_and_acc_uncond_the_difference_to_the_prior():
    # The first is likelier, but so it is without the question.
    scored = _scored([" a", " b"], [-2.0, -3.0], answer=1, unconditional=[-2.0, -9.0])
    metrics = _metrics("pmi_dc", [scored])
    assert (metrics["acc"], metrics["pmi_dc"], metrics["acc_uncond"]) == (0, 1, 1)
    # Ratios 2/10 and 9/20: the first is the smaller; differences 8 and 11: the second the larger.
    scored = _scored([" a", " b"], [-2.0, -9.0], answer=1, unconditional=[-10.0, -20.0])
    metrics = _metrics("pmi_dc", [scored])
    assert (metrics["pmi_dc"], metrics["acc_uncond"]) == (0, 1)


def test_without_unconditional_contexts_there_is_no_pmi_dc():
    assert not {"pmi_dc", "acc_uncond"} & _metrics("acc", [_scored([" a", " b"], [-1, -2])]).keys()


def test_soft_scores_are_the_share_of_the_right_answer():
    sums = [math.log(3.0), math.log(1.0)]
    metrics = _metrics("acc", [_scored([" aa", " bb"], sums)])
    assert metrics["soft"] == metrics["soft_v2"] == pytest.approx(0.75)
    assert metrics["soft_log"] == pytest.approx(math.log(0.75))
    # By what the task ranks by: here twice the logarithms without the space, three times with it.
    sums = [2 * math.log(3.0), 2 * math.log(1.0)]
    metrics = _metrics("len_norm", [_scored([" aa", " bb"], sums)])
    assert metrics["soft"] == pytest.approx(0.75)
    assert metrics["soft_v2"] == pytest.approx(3 ** (2 / 3) / (3 ** (2 / 3) + 1))


def test_f1_is_of_the_first_choice():
    # Right yes, wrong yes, missed yes: precision 1/2, recall 1/2.
    assert f1([0, 1, 0, 1], [0, 0, 1, 1]) == 0.5
    assert f1([0, 0, 0, 1], [0, 1, 1, 1]) == pytest.approx(2 * 1 * (1 / 3) / (1 + 1 / 3))
    assert f1([1, 1], [1, 1]) == 0.0
    chosen = [(0, 0), (1, 0), (0, 1), (1, 1)]
    items = [_scored([" yes", " no"], [-c, c - 1], answer=a) for a, c in chosen]
    metrics = _metrics("f1", items)
    assert metrics["f1"] == metrics["primary"] == metrics["acc"] == 0.5


def test_the_standard_error_is_that_of_the_mean_of_zeros_and_ones():
    values = np.array([0, 1, 1, 0, 1])
    expected = values.std(ddof=1) / math.sqrt(5)
    assert standard_error(0.6, 5) == pytest.approx(expected)
    items = [_scored([" a", " b"], [-float(v), -0.5], answer=1) for v in values]
    assert _metrics("acc", items)["acc_stderr"] == pytest.approx(expected)


def test_guessing_is_the_mean_over_numbers_of_choices():
    items = [_scored([" a", " b"], [-1, -2]), _scored([" a", " b", " c", " d"], [-1, -2, -3, -4])]
    assert _metrics("acc", items)["random"] == (1 / 2 + 1 / 4) / 2


def test_where_there_is_nothing_to_choose_only_the_cost_is_reported():
    metrics = _metrics("bpb", [_scored([" ab"], [-2.0]), _scored([" a"], [-1.0])])
    names = {"primary", "ce_loss", "ce_loss_v2", "bpb", "bpb_v2", "num_items"}
    assert metrics.keys() == names
    assert metrics["primary"] == metrics["bpb"] == pytest.approx(1 / math.log(2))

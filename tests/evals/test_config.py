from dataclasses import dataclass, field
from typing import Any

import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.config.overrides import apply_overrides, validate
from jaxpretrain.config.renames import upgraded
from jaxpretrain.config.serialize import from_dict, to_dict
from jaxpretrain.evals.config import Eval
from jaxpretrain.evals.harness import Harness
from jaxpretrain.evals.linear_probe import LinearProbe
from jaxpretrain.evals.perplexity import Perplexity
from jaxpretrain.evals.samples import Continuations, Reconstructions


@dataclass(frozen=True)
class Config:
    """The group of an experiment that these tests need."""

    eval: Eval = field(default_factory=Eval)


@pytest.mark.parametrize(
    ("old", "now"),
    [
        ({"prompts": [], "sample_tokens": 48, "reconstructions": None}, Eval()),
        (
            {"prompts": ["The "], "sample_tokens": 4, "reconstructions": None},
            Eval(samples=Continuations(("The ",), 4)),
        ),
        (
            {"prompts": "held_out", "sample_tokens": 48},
            Eval(samples=Continuations("held_out", 48)),
        ),
        (
            {
                "prompts": [],
                "sample_tokens": 48,
                "reconstructions": {"class": "reconstructions", "num_images": 3},
            },
            Eval(samples=Reconstructions(3)),
        ),
        (
            {"batch_size": 64, "task_items": 200, "task_seed": 1234, "tasks": ["core_small"]},
            Eval(tasks=("core_small",), task_items=200),
        ),
    ],
)
def test_saved_configs_of_older_versions_are_read(old: dict[str, Any], now: Eval):
    assert from_dict(Config, upgraded({"eval": old})) == Config(now)
    assert upgraded(to_dict(Config(now))) == to_dict(Config(now))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("eval.prompts", "eval.samples=continuations, then eval.samples.prompts"),
        ("eval.sample_tokens", "eval.samples.num_tokens"),
        ("eval.reconstructions", "eval.samples=reconstructions"),
        ("eval.reconstructions.num_images", "eval.samples.num_images"),
        ("eval.batch_size", "an evaluation batch is a training microbatch"),
        ("eval.task_seed", "takes the first items of each task"),
    ],
)
def test_an_old_path_says_what_to_set_now(path: str, message: str):
    with pytest.raises(InputError, match=message):
        apply_overrides(Config(), [(path, "3")])


def test_every_evaluation_can_be_set_on_the_command_line():
    overrides = {
        "eval.samples": "continuations",
        "eval.samples.num_tokens": "5",
        "eval.probe": "linear_probe",
        "eval.harness": "harness",
        "eval.harness.tasks": "arc_easy,piqa",
        "eval.perplexity": "perplexity",
        "eval.perplexity.sets.c4": "a.npy,b.npy",
        "eval.perplexity.dtype": "uint32",
    }
    config = apply_overrides(Config(), overrides.items())
    assert config.eval == Eval(
        samples=Continuations("held_out", 5),
        probe=LinearProbe(),
        harness=Harness(("arc_easy", "piqa")),
        perplexity=Perplexity({"c4": ("a.npy", "b.npy")}, "uint32"),
    )
    assert from_dict(Config, to_dict(config)) == config


def test_a_number_outside_its_range_is_one_line():
    zero = [("eval.samples", "continuations"), ("eval.samples.num_tokens", "0")]
    with pytest.raises(InputError, match="--config.eval.samples.num_tokens=0: must be positive"):
        validate(apply_overrides(Config(), zero))

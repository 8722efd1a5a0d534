from argparse import Namespace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest

from jaxpretrain import inference
from jaxpretrain.checkpoints.orbax import Checkpoints
from jaxpretrain.config.errors import InputError
from jaxpretrain.evals.config import Eval
from jaxpretrain.evals.harness import Harness
from jaxpretrain.evals.perplexity import Perplexity


def _flags(**given: Any) -> Namespace:
    defaults = {"tasks": "", "harness": "", "perplexity": [], "harness_folder": None}
    numbers = {"num_fewshot": None, "token_dtype": None, "trust_token_dtype": None}
    return Namespace(**defaults | numbers | given)


def test_flags_are_short_forms_of_fields(tmp_path: Path):
    named = inference._named(
        _flags(
            tasks="arc_easy,piqa",
            harness="lambada_openai",
            harness_folder=tmp_path,
            num_fewshot=3,
            perplexity=["c4=a.npy,b.npy", "pile=c.npy"],
            token_dtype="uint32",
        )
    )
    assert named == Eval(
        tasks=("arc_easy", "piqa"),
        harness=Harness(("lambada_openai",), str(tmp_path), 3),
        perplexity=Perplexity({"c4": ("a.npy", "b.npy"), "pile": ("c.npy",)}, "uint32"),
    )
    assert inference._named(_flags()) is None
    assert inference._named(_flags(tasks="piqa")) == Eval(tasks=("piqa",))


def test_errors_about_fields_name_the_flags():
    message = "set eval.perplexity.dtype=uint32, or eval.perplexity.trust_dtype=true"
    assert inference._in_flags(message) == "set --token_dtype=uint32, or --trust_token_dtype"
    message = "eval.tasks need a tokenizer, and the data has none: set eval.tokenizer"
    assert inference._in_flags(message).startswith("--tasks need")


@pytest.mark.parametrize(
    ("steps", "chosen"),
    [("all", [2, 4, 6]), ("3:", [4, 6]), (":4", [2, 4]), ("6,2", [2, 6]), ("4:5", [4])],
)
def test_steps_choose_checkpoints_of_a_run(tmp_path: Path, steps: str, chosen: list[int]):
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep_last=None)
    for step in (2, 4, 6):
        checkpoints.save(step, {"x": jnp.zeros(1)}, {})
    checkpoints.wait()
    found = inference._checkpoints(tmp_path, steps)
    assert found == [tmp_path / "checkpoints" / str(step) for step in chosen]
    assert inference._checkpoints(tmp_path, None) == [tmp_path]
    with pytest.raises(InputError, match="has checkpoints of the steps .2, 4, 6."):
        inference._checkpoints(tmp_path, "7:")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tasks": "own.jsonl"}, "own.jsonl: cannot read this task file"),
        ({"tokenizer": Path("none.json")}, "none.json"),
    ],
)
def test_wrong_names_are_refused_before_any_weights_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], message: str
):
    monkeypatch.setattr(inference, "load_trained", lambda *_: pytest.fail("weights were read"))
    flags = _flags(**{"checkpoint": tmp_path, "steps": None, "tokenizer": None} | given)
    with pytest.raises(InputError, match=message):
        list(inference.evaluate(flags))

"""The coordinate check on small models, whose slopes are noisy: right factors, wrong ones."""

import json
import math
from dataclasses import replace

import jax
import numpy as np
import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.coordinate_check import coordinates
from jaxpretrain.data.prepare.prepare_text import PrepareText, prepare_text
from jaxpretrain.data.text.text import TextData
from jaxpretrain.models.layers import RMSNorm
from jaxpretrain.models.olmo.config import Normal
from jaxpretrain.models.olmo.decoder import Decoder
from jaxpretrain.models.scaling import Growth
from jaxpretrain.optim.optimizers import AdamW
from jaxpretrain.optim.schedules import Triangular
from jaxpretrain.train.experiment import Experiment, Train

WORDS = ("of", "the", "people", "and", "that", "union", "states", "congress", "law", "year")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    folder = tmp_path_factory.mktemp("text")
    draw = np.random.default_rng(0)
    lines = (json.dumps({"text": " ".join(draw.choice(WORDS, size=60))}) for _ in range(60))
    (folder / "words.jsonl").write_text("\n".join(lines))
    spec = PrepareText(files=(str(folder / "words.jsonl"),), vocab_size=280)
    prepare_text(spec, folder / "tokens", workers=1)
    return Experiment(
        model=Decoder(
            vocab_size=280,
            embedding_rows=280,
            d_model=32,
            num_layers=1,
            num_heads=4,
            num_kv_heads=2,
            d_ff=64,
            norm=RMSNorm(1e-6),
            norm_position="after",
            qk_norm=True,
            init=Normal(),
            dtype="float32",
            remat="none",
            scaling="completep",
            base_width=8,
            base_depth=1,
        ),
        data=TextData(root=str(folder / "tokens"), seq_len=16),
        optim=AdamW(schedule=Triangular(start=1e-5, peak=6e-3, warmup="5 steps")),
        train=Train(duration="20 steps", batch_size=4),
    )


def check(config: Experiment, widths=(), depths=(), **changes):
    model = replace(config.model, **changes)
    return coordinates.check_coordinates(
        replace(config, model=model),
        widths=widths,
        depths=depths,
        num_seeds=2,
        num_steps=4,
        devices=jax.devices()[:1],
    )


def slopes(document, kind: str, quantity: str):
    return [
        row["slopes"]
        for row in document["slopes"]
        if (row["kind"], row["quantity"]) == (kind, quantity)
    ]


@pytest.fixture(scope="module")
def by_width(config: Experiment):
    return check(config, widths=(32, 256))


def test_slopes_are_those_of_the_sizes(by_width):
    """A slope over two sizes is the difference of logarithms over that of the sizes."""
    assert (by_width["widths"], by_width["depths"], by_width["num_steps"]) == ([32, 256], [], 4)
    for row in by_width["slopes"]:
        key = ("kind", "quantity")
        low, high = (
            s["layers"][row["layer"] or 0]
            for s in by_width["sizes"]
            if all(s[k] == row[k] for k in key)
        )
        for step, slope in enumerate(row["slopes"]):
            if slope is not None:
                expected = np.log2(high[step] / low[step]) / 3
                assert slope == pytest.approx(expected, abs=1e-6)
    counted = [s for r in by_width["slopes"] if r["kind"] == "change" for s in r["slopes"][2:]]
    assert by_width["max_abs_slope"] == max(map(abs, counted))
    text = "\n".join(coordinates.tell(by_width))
    assert f"the largest slope of a change is {by_width['max_abs_slope']:.3f}" in text


def test_the_run_is_at_its_peak_from_the_first_step(by_width):
    """The first update of Adam has entries of the size of the rate: 6e-3, of matrices a quarter."""
    for size in by_width["sizes"]:
        if (size["kind"], size["quantity"], size["size"]) == ("update", "head", 32):
            assert size["layers"][0][1] == pytest.approx(6e-3, rel=0.1)
        if (size["kind"], size["quantity"], size["size"]) == ("update", "blocks/query", 32):
            assert size["layers"][0][1] == pytest.approx(6e-3 / 4, rel=0.1)


def test_logits_shrink_and_changes_are_flat_with_the_right_factors(by_width):
    ((initial, *_),) = slopes(by_width, "size", "logits")
    assert initial == pytest.approx(-0.5, abs=0.1)
    assert by_width["max_abs_slope"] < 0.2
    assert by_width["max_initial_slope"] < 0.1


def wrong_rate(self, role, *, in_layer=False):
    return RIGHT(self, role, in_layer=in_layer)._replace(rate=1.0)


def wrong_product(self, role, *, in_layer=False):
    return RIGHT(self, role, in_layer=in_layer)._replace(product=1.0)


RIGHT = Growth.factors


@pytest.mark.parametrize("wrong", [wrong_rate, wrong_product])
def test_a_wrong_factor_fails_the_check(config, by_width, monkeypatch, wrong):
    monkeypatch.setattr(Growth, "factors", wrong)
    document = check(config, widths=(32, 256))
    assert not document["flat"]
    assert document["max_abs_slope"] > 0.3 > by_width["max_abs_slope"]


def test_a_wrong_deviation_grows_at_initialization(config, monkeypatch):
    """Without norms after the branches, matrices of one deviation make activations grow."""

    def wrong(self, role, *, in_layer=False):
        return RIGHT(self, role, in_layer=in_layer)._replace(deviation=1.0)

    changes = {"norm_position": "before", "qk_norm": False}
    right = check(config, widths=(32, 256), **changes)
    monkeypatch.setattr(Growth, "factors", wrong)
    document = check(config, widths=(32, 256), **changes)
    assert document["max_initial_slope"] > 0.3 > right["max_initial_slope"]


def test_branches_without_their_factor_grow_with_the_depth(config, monkeypatch):
    right = check(config, depths=(1, 8))
    monkeypatch.setattr(Growth, "branch", 1.0)
    document = check(config, depths=(1, 8))
    top = [r for r in document["slopes"] if r["layer"] == "top" and r["kind"] == "size"]
    assert [row["quantity"] for row in top] == ["activation/blocks"]
    assert max(row["slopes"][0] for row in top) > 0.3 > right["max_initial_slope"]


def test_depths_are_compared_at_equal_parts():
    """Outputs of the middle and the top; attention where its input is that of the middle."""
    tables = [np.arange(n)[None] for n in (2, 8)]
    labels, found = coordinates._at_equal_depths("activation/blocks", tables)
    assert labels == ["middle", "top"]
    assert [table.tolist() for table in found] == [[[0, 1]], [[3, 7]]]
    labels, found = coordinates._at_equal_depths("attention_logit/blocks", tables)
    assert (labels, [table.tolist() for table in found]) == (["middle"], [[[1]], [[4]]])


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"widths": (64,)}, "a slope takes two sizes"),
        ({"widths": (32, 36)}, "--widths=36: no multiple of the head size 8"),
        ({"depths": (4,)}, "a slope takes two sizes"),
    ],
)
def test_sizes_that_tell_nothing_are_refused(config, sizes, message):
    with pytest.raises(InputError, match=message):
        check(config, **sizes)


def test_a_width_without_a_whole_counterpart_is_refused(config):
    with pytest.raises(InputError, match=r"model.num_kv_heads=2 at width 32"):
        check(config, widths=(32, 40))


def test_fewer_channels_than_heads_are_refused(config):
    with pytest.raises(InputError, match="cannot divide model.d_model by model.num_heads: 32 / 64"):
        check(config, widths=(32, 64), num_heads=64)


def test_a_size_that_does_not_fit_is_refused_before_others_are_trained(config, monkeypatch):
    monkeypatch.setattr(coordinates, "_prepare", lambda *_: pytest.fail("a size is trained"))
    with pytest.raises(InputError, match="model.num_layers by the length of model.windows: 3 / 2"):
        check(config, depths=(2, 3), windows=(4, None))


def test_a_run_that_diverges_is_not_flat(config):
    """What a diverged size computes is no number, and has no slope; the slopes before are flat."""
    kinds: list[coordinates.Kind] = ["size", "change"]
    rows = [
        coordinates.Slope("width", kind, "logits", None, [0.0, 0.0, 0.01, math.nan, 0.02])
        for kind in kinds
    ]
    document = coordinates._document(config, {"width": {}, "depth": {}}, rows)
    assert (document["max_abs_slope"], document["flat"]) == (None, False)
    json.dumps(document, allow_nan=False)
    text = "\n".join(coordinates.tell(document))
    assert (
        "NOT flat under model.scaling=completep: the largest slope of a change is unknown" in text
    )


def test_more_steps_than_the_run_has_are_refused(config):
    short = replace(config, train=Train(duration="2 steps", batch_size=4))
    with pytest.raises(InputError, match="--steps=4: the run has 2"):
        check(short, widths=(32, 64))

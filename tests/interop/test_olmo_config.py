import json
from pathlib import Path
from typing import Any

import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.interop.olmo_config import NO_EFFECT, OlmoKeys, read_decoder
from jaxpretrain.models.layers import LayerNorm
from jaxpretrain.models.olmo.config import Normal

REQUIRED: dict[str, Any] = {
    "rope": True,
    "include_bias": False,
    "layer_norm_with_affine": False,
}


@pytest.fixture
def keys(tmp_path: Path):
    """Settings of the group `model`, beside those that every model here has -> the file's keys."""

    def read(**settings: Any) -> OlmoKeys:
        file = tmp_path / "config.yaml"
        file.write_text(json.dumps({"model": REQUIRED | settings}))
        return OlmoKeys(file)

    return read


def test_what_is_not_given_is_olmos_default(keys):
    model = read_decoder(keys())
    sizes = (model.d_model, model.num_layers, model.num_heads, model.num_kv_heads, model.d_ff)
    assert sizes == (768, 12, 12, None, 4 * 768 // 2)
    assert (model.vocab_size, model.embedding_rows, model.tied_head) == (50257, 50304, True)
    assert (model.norm, model.norm_position) == (LayerNorm(1e-5), "before")
    assert model.init == Normal(0.02, None)


@pytest.mark.parametrize(
    ("init", "given", "cutoff"),
    [
        ("normal", None, None),
        ("normal", 2.5, 2.5),
        ("normal", 0, None),
        ("mitchell", None, 3.0),
        ("mitchell", 2, 2.0),
        ("mitchell", 0, 3.0),
        ("full_megatron", None, 3.0),
        ("full_megatron", 4.0, 4.0),
    ],
)
def test_only_normal_draws_are_not_cut_by_default(keys, init, given, cutoff):
    """`init_cutoff_factor or 3.0` in `reset_parameters` of olmo/model.py."""
    assert read_decoder(keys(init_fn=init, init_cutoff_factor=given)).init.cutoff == cutoff


@pytest.mark.parametrize(
    ("num_kv_heads", "is_shared", "expected"),
    [
        (None, None, None),
        (None, False, None),
        (None, True, 1),
        (4, None, 4),
        (12, None, None),
        (12, False, None),
        (1, True, 1),
        (1, None, 1),
    ],
)
def test_grouped_heads_are_olmos_effective_ones(keys, num_kv_heads, is_shared, expected):
    found = keys(n_kv_heads=num_kv_heads, multi_query_attention=is_shared)
    assert read_decoder(found).num_kv_heads == expected
    found.check()


@pytest.mark.parametrize(("num_kv_heads", "is_shared"), [(4, False), (4, True), (12, True)])
def test_two_numbers_of_heads_are_a_contradiction(keys, num_kv_heads, is_shared):
    found = keys(n_kv_heads=num_kv_heads, multi_query_attention=is_shared)
    read_decoder(found)
    with pytest.raises(InputError, match=f"n_kv_heads={num_kv_heads} beside .*={is_shared}"):
        found.check()


@pytest.mark.parametrize("size", ["d_model", "n_heads", "n_layers", "vocab_size"])
@pytest.mark.parametrize("value", [0, -4, 2.5])
def test_sizes_are_positive_whole_numbers(keys, size, value):
    with pytest.raises(InputError, match=f"model.{size}={value} is not a positive whole number"):
        read_decoder(keys(**{size: value}))


def test_rounded_rotary_positions_are_refused(keys):
    found = keys(rope_full_precision=False)
    read_decoder(found)
    with pytest.raises(InputError, match="model.rope_full_precision=False"):
        found.check()


@pytest.fixture
def read(tmp_path: Path):
    """The keys of a YAML text."""

    def read(text: str, *ignored: str) -> OlmoKeys:
        file = tmp_path / "run.yaml"
        file.write_text(text)
        return OlmoKeys(file, ignored)

    return read


def test_every_key_of_a_file_has_its_line(read):
    keys = read("seed: 6198\nmodel:\n  d_model: 64\n  pad_token_id: 1\ncompile: null\n")
    assert keys.take("seed") == 6198 and keys.number("model.d_model") == 64
    keys.skip("model.pad_token_id", "there is none")
    assert keys.report() == [
        "seed = 6198: used",
        "model.d_model = 64: used",
        "model.pad_token_id = 1: no effect: there is none",
        "compile = None: no effect: says how fast or where, not what",
    ]


def test_numbers_are_read_however_yaml_takes_them(read):
    """YAML 1.1 takes 5e12 for a text; OLMo does not."""
    keys = read("a: 5e12\nb: 1e-5\nc: 739_328\nd: 3.0e-4\ne: null\nf: many\n")
    found = [keys.number(key) for key in ("a", "b", "c", "d", "e", "absent")]
    assert found == [5 * 10**12, 1e-5, 739328, 3e-4, None, None]
    assert isinstance(found[0], int) and isinstance(found[2], int)
    with pytest.raises(InputError, match="f='many' is not a number"):
        keys.number("f")


def test_a_key_can_refer_to_another(read):
    keys = read("save_interval: 250\neval_interval: ${save_interval}\nrun: ${oc.env:HOME}\n")
    assert keys.take("eval_interval") == 250
    assert keys.take("run") == "${oc.env:HOME}"


def test_what_is_not_supported_is_refused_with_the_way_out(read):
    text = "model:\n  alibi: true\n  warp: 9\n"
    keys = read(text)
    assert keys.only("model.alibi", False, default=False) is False
    keys.only("model.include_bias", False, default=True)
    with pytest.raises(InputError) as error:
        keys.report()
    assert str(error.value) == (
        f"{keys.file}: not supported: model.alibi=True (here: False); model.include_bias=True, "
        "which is not given and OLMo's default (here: False); model.warp=9 (not known here). "
        "To train without what a key says, take it out of the file, or name it: "
        "FILE.yaml,ignore=KEY"
    )


def test_what_is_ignored_is_said(read):
    keys = read("model:\n  alibi: true\n  warp: 9\n", "model.alibi", "model.warp")
    assert keys.only("model.alibi", False, default=False) is False
    ending = "ignored, as asked: what it says is not done"
    assert keys.report() == [f"model.alibi = True: {ending}", f"model.warp = 9: {ending}"]


def test_only_keys_of_the_file_can_be_ignored(read):
    with pytest.raises(InputError, match=r"has no key model\.alibl to ignore"):
        read("model:\n  alibi: true\n", "model.alibl")


@pytest.mark.parametrize("text", ["", "- a\n", "a: [\n", "just text\n"])
def test_what_is_no_config_is_refused(read, text):
    with pytest.raises(InputError, match="no config|no YAML"):
        read(text)


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(InputError, match="none.yaml: cannot be read"):
        OlmoKeys(tmp_path / "none.yaml", ())


def test_no_key_has_two_reasons():
    patterns = [pattern for group in NO_EFFECT.values() for pattern in group.split()]
    assert len(patterns) == len(set(patterns))

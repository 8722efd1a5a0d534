import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxpretrain.checkpoints.names import from_named
from jaxpretrain.config.errors import InputError
from jaxpretrain.data.token_files.special import beginning_with
from jaxpretrain.interop.hugging_face import open_hugging_face, write_hugging_face
from jaxpretrain.interop.source import Source
from jaxpretrain.interop.tables import whole
from jaxpretrain.train.trained import load_trained

Folder = Callable[..., tuple[Path, dict[str, np.ndarray]]]

SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "eos_token_id": 2,
    "pad_token_id": 1,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}


def _logits(source: Source, tokens_bt: np.ndarray) -> np.ndarray:
    model = replace(source.model, dtype="float32", remat="none")
    built = model.build(source.data.example_spec(), platform="cpu")
    named = {name: jnp.asarray(whole(array)) for name, array in source.params.items()}
    like = _nested(named)
    return np.asarray(built.logits(from_named(like, named), jnp.asarray(tokens_bt)))


def _nested(named: dict[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, leaf in named.items():
        *path, last = name.split("/")
        at = tree
        for key in path:
            at = at.setdefault(key, {})
        at[last] = leaf
    return tree


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("Olmo", {"clip_qkv": 0.3}),
        ("Olmo", {"tie_word_embeddings": True}),
        ("Olmo2", {"rms_norm_eps": 1e-6}),
        ("Olmo2", {"num_key_value_heads": 2, "rope_parameters": {"rope_theta": 5e5}}),
        ("Olmo3", {"sliding_window": 8}),
        ("Olmo3", {"sliding_window": 8, "rope_scaling": YARN, "rope_theta": 5e5}),
        ("Llama", {"rms_norm_eps": 1e-6}),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_transformers_and_we_compute_the_same(name: str, keys: dict[str, Any], tmp_path: Path):
    """What we write back it loads, no tensor missing, with the same weights and config."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{name}Config")(**SIZES, **keys)
    torch.manual_seed(0)
    theirs = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():  # large enough that every part of a layer shows
            noise = torch.randn_like(parameter)
            parameter.copy_(0.25 * noise if parameter.ndim == 2 else 1 + 0.1 * noise)
    theirs.save_pretrained(tmp_path / "theirs")
    tokens = np.random.default_rng(0).integers(96, size=(2, 64))
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens)).logits.numpy()

    source = open_hugging_face(tmp_path / "theirs")
    found = _logits(source, tokens)
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(found, expected, atol=1e-4)

    write_hugging_face(source, tmp_path / "ours")
    again, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert not any(info.values())
    with torch.no_grad():
        np.testing.assert_array_equal(again(torch.tensor(tokens)).logits.numpy(), expected)
    assert again.config.to_dict() == theirs.config.to_dict() | {
        "_name_or_path": again.config.to_dict()["_name_or_path"],
        "rope_parameters": again.config.rope_parameters,
    }


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16, np.float16])
def test_there_and_back_every_bit_is_the_same(hugging_face: Folder, tmp_path: Path, dtype: Any):
    folder, tensors = hugging_face(dtype=dtype, num_hidden_layers=4)
    write_hugging_face(open_hugging_face(folder), tmp_path / "back")
    back = load_file(tmp_path / "back" / "model.safetensors")
    assert set(back) == set(tensors)
    for name, array in tensors.items():
        assert back[name].dtype == array.dtype and back[name].tobytes() == array.tobytes(), name


def test_tensors_of_several_types_keep_theirs(hugging_face: Folder, tmp_path: Path):
    """Norms in float32 and one layer's kernel in float16 among bfloat16, bit for bit."""
    folder, tensors = hugging_face()
    other = {name: np.float32 for name in tensors if name.endswith("norm.weight")}
    other["model.layers.1.mlp.up_proj.weight"] = np.float16
    rest = tensors.keys() - other.keys()
    assert len(rest) > 10 == len(other)
    tensors |= {name: tensors[name].astype(dtype) / 3 for name, dtype in other.items()}
    save_file(tensors, folder / "model.safetensors")
    source = open_hugging_face(folder)
    assert source.origin["dtype"] == "float32"
    assert source.origin["dtypes"]["blocks/0/up/kernel"] == ["bfloat16", "float16"]
    write_hugging_face(source, tmp_path / "back")
    back = load_file(tmp_path / "back" / "model.safetensors")
    for name, array in tensors.items():
        assert back[name].dtype == array.dtype and back[name].tobytes() == array.tobytes(), name
    write_hugging_face(source, tmp_path / "one", "bfloat16")
    one = load_file(tmp_path / "one" / "model.safetensors")
    assert {str(array.dtype) for array in one.values()} == {"bfloat16"}


def test_infinities_and_what_is_no_number_survive(hugging_face: Folder, tmp_path: Path):
    folder, tensors = hugging_face()
    tensors["model.norm.weight"][:4] = np.array([np.nan, -0.0, -np.inf, 1e-40], jnp.bfloat16)
    save_file(tensors, folder / "model.safetensors")
    write_hugging_face(open_hugging_face(folder), tmp_path / "back")
    back = load_file(tmp_path / "back" / "model.safetensors")
    assert back["model.norm.weight"].tobytes() == tensors["model.norm.weight"].tobytes()


def test_the_type_of_the_weights_can_be_chosen(hugging_face: Folder, tmp_path: Path):
    folder, tensors = hugging_face()
    write_hugging_face(open_hugging_face(folder), tmp_path / "wide", "float32")
    wide = load_file(tmp_path / "wide" / "model.safetensors")
    assert json.loads((tmp_path / "wide" / "config.json").read_text())["dtype"] == "float32"
    for name, array in tensors.items():
        np.testing.assert_array_equal(wide[name], array.astype(np.float32))


def test_special_tokens_and_tokenizer_come_along(
    hugging_face: Folder, tmp_path: Path, tokenizer_json: str
):
    folder, _ = hugging_face()
    (folder / "tokenizer.json").write_text(tokenizer_json)
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 7}')
    source = open_hugging_face(folder)
    assert source.model.vocab_size <= 300 < source.model.embedding_rows
    write_hugging_face(source, tmp_path / "back")

    def read(name: str) -> Any:
        return json.loads((tmp_path / "back" / name).read_text())

    assert (tmp_path / "back" / "tokenizer.json").read_text() == tokenizer_json
    assert read("tokenizer_config.json") == {"model_max_length": 7}
    assert read("special_tokens_map.json") == {"eos_token": "<|end|>"}
    assert read("generation_config.json") == {"eos_token_id": 0, "pad_token_id": 1}
    assert read("config.json")["eos_token_id"] == 0


def test_a_tokenizer_with_more_ids_than_rows_is_refused(hugging_face: Folder, tokenizer_json: str):
    folder, _ = hugging_face(vocab_size=64)
    (folder / "tokenizer.json").write_text(tokenizer_json)
    with pytest.raises(InputError, match="tokenizer.json has .* ids, but the embedding only 64"):
        open_hugging_face(folder)


def test_transformers_loads_the_tokenizer_of_a_model_trained_here(
    hugging_face: Folder, tmp_path: Path, tokenizer_json: str
):
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder, _ = hugging_face()
    (folder / "tokenizer.json").write_text(tokenizer_json)
    write_hugging_face(replace(open_hugging_face(folder), origin={}), tmp_path / "out")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|end|>", 0)
    ids = tokenizer("the union of the states")["input_ids"]
    assert tokenizer.decode(ids) == "the union of the states"
    # Prompts begin there as the documents of the data did.
    (folder / "tokenizer.json").write_text(beginning_with(tokenizer_json, "<|end|>"))
    write_hugging_face(replace(open_hugging_face(folder), origin={}), tmp_path / "begun")
    begun = transformers.AutoTokenizer.from_pretrained(tmp_path / "begun")
    assert begun("the union of the states")["input_ids"] == [0, *ids]
    assert begun.bos_token == "<|end|>"


def test_a_second_copy_of_a_tied_embedding_is_dropped_only_if_it_is_one(hugging_face: Folder):
    folder, tensors = hugging_face(tie_word_embeddings=True)
    copy = {"lm_head.weight": tensors["model.embed_tokens.weight"]}
    save_file(tensors | copy, folder / "model.safetensors")
    assert "head/kernel" not in open_hugging_face(folder).params
    copy["lm_head.weight"] = copy["lm_head.weight"] + 1
    save_file(tensors | copy, folder / "model.safetensors")
    with pytest.raises(InputError, match="lm_head.weight is not model.embed_tokens.weight"):
        open_hugging_face(folder)


def test_what_old_versions_wrote_beside_the_weights_is_passed_over(hugging_face: Folder):
    folder, tensors = hugging_face()
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    save_file(tensors | {name: np.ones(2, np.float32)}, folder / "model.safetensors")
    source = open_hugging_face(folder)
    assert source.origin["dtype"] == "bfloat16"


@pytest.mark.parametrize("has_shards", [True, False])
@pytest.mark.parametrize("has_config", [True, False])
def test_a_folder_of_olmo_core_is_said_to_be_one(
    tmp_path: Path, has_shards: bool, has_config: bool
):
    """Its `config.json` is an experiment; a step has its shards beside it."""
    if not (has_shards or has_config):
        pytest.skip("an empty folder")
    model = {"d_model": 16, "_CLASS_": "olmo_core.nn.transformer.config.TransformerConfig"}
    if has_config:
        config = {"run_name": "x", "model": model, "dataset": {}, "trainer": {}}
        (tmp_path / "config.json").write_text(json.dumps(config))
    if has_shards:
        (tmp_path / "model_and_optim").mkdir()
    for load in (open_hugging_face, load_trained):
        with pytest.raises(InputError, match="sharded checkpoint or a run of OLMo-core, which is"):
            load(tmp_path)


def test_nothing_is_made_up_for_what_lacks(hugging_face: Folder):
    folder, tensors = hugging_face()
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(InputError, match=r"model.layers.1.mlp.up_proj.weight is missing"):
        open_hugging_face(folder)


@pytest.mark.parametrize(
    ("key", "value", "place"),
    [
        ("rope_parameters", [1], "rope_parameters"),
        (
            "rope_parameters",
            {"full_attention": {"factor": "4"}},
            "rope_parameters.full_att",
        ),
        ("rope_scaling", {"rope_type": 3}, "rope_scaling.rope_type"),
        ("architectures", 3, "architectures"),
        ("architectures", [None], "architectures.0"),
        ("hidden_size", 10**30, "hidden_size"),
        ("tie_word_embeddings", None, "tie_word_embeddings"),
        ("rms_norm_eps", "1e-6", "rms_norm_eps"),
        ("layer_types", {"0": "full_attention"}, "layer_types"),
        ("eos_token_id", [1, "2"], "eos_token_id.1"),
        ("num_key_value_heads", 2.5, "num_key_value_heads"),
    ],
)
def test_a_value_of_another_type_is_named_with_its_file(
    hugging_face: Folder, key: str, value: Any, place: str
):
    folder, _ = hugging_face()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {key: value}))
    with pytest.raises(InputError, match=rf"config\.json: {place}"):
        open_hugging_face(folder)

import base64
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxpretrain.checkpoints.names import to_named
from jaxpretrain.config.errors import InputError
from jaxpretrain.interop.hugging_face import open_hugging_face
from jaxpretrain.interop.olmo import decode_key, open_olmo
from jaxpretrain.interop.tables import whole
from jaxpretrain.optim.optimizers import AdamW
from jaxpretrain.optim.schedules import Triangular

Folder = Callable[..., tuple[Path, dict[str, np.ndarray]]]

CONFIG = """
run_name: tiny
model:
  d_model: 16
  n_heads: 4
  n_kv_heads: 2
  n_layers: 2
  mlp_hidden_size: 48
  weight_tying: false
  rope: true
  rope_theta: 500000
  include_bias: false
  block_type: sequential
  layer_norm_type: rms
  layer_norm_with_affine: true
  layer_norm_eps: 1e-6
  attention_layer_norm: true
  norm_after: true
  max_sequence_length: 32
  vocab_size: 310
  embedding_size: 320
  eos_token_id: 0
  pad_token_id: 1
  init_fn: normal
  init_cutoff_factor: 3
"""

BLOCK = {
    "attn_out": ("self_attn.o_proj",),
    "ff_out": ("mlp.down_proj",),
    "att_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "ff_proj": ("mlp.up_proj", "mlp.gate_proj"),
    "q_norm": ("self_attn.q_norm",),
    "k_norm": ("self_attn.k_norm",),
    "attn_norm": ("post_attention_layernorm",),
    "ff_norm": ("post_feedforward_layernorm",),
}


def _native(hf: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors of transformers under the names and in the joints of OLMo's trainer."""
    native = {
        "transformer.wte.weight": hf["model.embed_tokens.weight"],
        "transformer.ln_f.weight": hf["model.norm.weight"],
        "transformer.ff_out.weight": hf["lm_head.weight"],
    }
    for layer in range(2):
        for name, parts in BLOCK.items():
            joined = [hf[f"model.layers.{layer}.{part}.weight"] for part in parts]
            native[f"transformer.blocks.{layer}.{name}.weight"] = np.concatenate(joined)
    return native


def _key(*path: str, is_pickle: bool = False) -> str:
    return base64.urlsafe_b64encode(pickle.dumps((path, is_pickle))).decode()


def _moments(params: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    tensors = {_key("param_groups", is_pickle=True): np.frombuffer(pickle.dumps([{}]), np.uint8)}
    for name, array in params.items():
        tensors |= {
            _key("state", name, "exp_avg"): 2 * array,
            _key("state", name, "exp_avg_sq"): array**2,
            _key("state", name, "step"): np.array(1000, np.float32),
        }
    return tensors


@pytest.fixture
def source(hugging_face: Folder) -> tuple[Path, dict[str, np.ndarray]]:
    """A tiny OLMo 2 of transformers."""
    return hugging_face("hf", dtype=np.float32)


@pytest.fixture
def native(source: tuple[Path, dict[str, np.ndarray]], tmp_path: Path) -> Path:
    """The same model as a checkpoint of OLMo's trainer at step 1000, with moments."""
    folder = tmp_path / "step1000-unsharded"
    folder.mkdir()
    (folder / "config.yaml").write_text(CONFIG)
    tensors = _native(source[1])
    save_file({_key(n): a for n, a in tensors.items()}, folder / "model.safetensors")
    save_file(_moments(tensors), folder / "optim.safetensors")
    return folder


def test_both_forms_of_a_model_are_the_same_parameters(source: Any, native: Path):
    theirs, ours = open_hugging_face(source[0]), open_olmo(native)
    assert set(theirs.params) == set(ours.params)
    for name, array in theirs.params.items():
        np.testing.assert_array_equal(whole(ours.params[name]), whole(array), name)
    for field in ("d_model", "num_kv_heads", "d_ff", "rope", "qk_norm"):
        assert getattr(ours.model, field) == getattr(theirs.model, field), field
    assert ours.model.norm.epsilon == theirs.model.norm.epsilon
    assert (ours.model.vocab_size, ours.data.seq_len, ours.step) == (310, 32, 1000)
    assert ours.origin == {
        "dtype": "float32",
        "token_ids": {"eos_token_id": 0, "pad_token_id": 1},
    }


def test_moments_are_those_of_our_adamw(native: Path):
    """Its state by the same names, shapes and types, so that training goes on from it."""
    found = open_olmo(native)
    model = found.model.build(found.data.example_spec(), platform="cpu")
    params = jax.eval_shape(model.init, jax.random.key(0))
    optimizer = AdamW(schedule=Triangular(warmup=1)).build(10, 8, params)
    state = to_named(jax.eval_shape(optimizer.transform.init, params))
    kinds = {name: (a.shape, a.dtype) for name, a in found.optimizer.items()}
    assert kinds == {name: (leaf.shape, leaf.dtype) for name, leaf in state.items()}
    for name, array in found.params.items():
        weights = whole(array)
        np.testing.assert_array_equal(whole(found.optimizer[f"adam/mu/{name}"]), 2 * weights)
        np.testing.assert_array_equal(whole(found.optimizer[f"adam/nu/{name}"]), weights**2)
    for count in ("adam/count", "learning_rate/count"):
        assert [int(part) for part in found.optimizer[count].parts()] == [1000]


def test_torch_files_say_the_same(source: Any, native: Path, tmp_path: Path):
    """As FSDP and DDP save them, with their prefixes, groups of blocks and numbered parameters."""
    torch = pytest.importorskip("torch")
    folder = tmp_path / "latest"
    folder.mkdir()
    (folder / "config.yaml").write_text(CONFIG + "  block_group_size: 2\n")
    tensors = {name: torch.tensor(array) for name, array in _native(source[1]).items()}
    grouped = {
        re.sub(r"blocks\.(\d)", r"_fsdp_wrapped_module.block_groups.0.\1", name): tensor
        for name, tensor in tensors.items()
    }
    torch.save(grouped, folder / "model.pt")
    state = {
        i: {"exp_avg": 2 * t, "exp_avg_sq": t**2, "step": torch.tensor(1000.0)}
        for i, t in enumerate(grouped.values())
    }
    groups = [{"params": list(state), "param_names": list(grouped), "lr": 0.1}]
    torch.save({"state": state, "param_groups": groups}, folder / "optim.pt")
    torch.save({"global_step": 1000}, folder / "train.pt")
    expected, found = open_olmo(native), open_olmo(folder)
    assert (found.model, found.step) == (expected.model, 1000)
    for part in ("params", "optimizer"):
        arrays = getattr(expected, part)
        assert set(getattr(found, part)) == set(arrays)
        for name in filter(lambda name: "count" not in name, arrays):
            np.testing.assert_array_equal(
                whole(getattr(found, part)[name]), whole(arrays[name]), name
            )


def test_without_an_optimizer_there_are_only_weights(native: Path):
    (native / "optim.safetensors").unlink()
    assert not open_olmo(native).optimizer


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("rope: true", "rope: false", r"not supported: model.rope=False \(here: True\)"),
        (
            "include_bias: false",
            "",
            "not supported: model.include_bias=True, which is not given and OLMo's default",
        ),
        (
            "layer_norm_type: rms",
            "layer_norm_type: default",
            "not supported: model.layer_norm_with_affine=True",
        ),
        ("d_model: 16", "d_model: none", "model.d_model='none' is not a number"),
        ("model:", "trainer:", "is not the config of an OLMo model"),
        ("model:", "model: [", "is no YAML"),
        ("n_layers: 2", "n_layers: 3", "blocks.2.att_proj.weight and 7 more are missing"),
        ("mlp_hidden_size: 48", "mlp_hidden_size: 64", r"is \[48, 16\], but its config says"),
    ],
)
def test_another_model_is_refused(native: Path, old: str, new: str, message: str):
    (native / "config.yaml").write_text(CONFIG.replace(old, new))
    with pytest.raises(InputError, match=message):
        open_olmo(native)


def test_moments_of_other_parameters_are_refused(source: Any, native: Path):
    moments = _moments(_native(source[1]))
    del moments[_key("state", "transformer.wte.weight", "exp_avg_sq")]
    save_file(moments, native / "optim.safetensors")
    with pytest.raises(InputError, match="exp_avg_sq of its optimizer: transformer.wte.weight is"):
        open_olmo(native)


def test_a_sharded_checkpoint_of_olmo_core_is_refused(tmp_path: Path):
    (tmp_path / "model_and_optim").mkdir()
    with pytest.raises(InputError, match="sharded checkpoint or a run of OLMo-core, which is"):
        open_olmo(tmp_path)


def _encoded(value: object, protocol: int = pickle.DEFAULT_PROTOCOL) -> str:
    return base64.urlsafe_b64encode(pickle.dumps(value, protocol)).decode()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(
    "key",
    [
        (("transformer.wte.weight",), False),
        (("state", "transformer.wte.weight", "exp_avg"), False),
        (("state", 7, "step", "step"), True),
        ((), False),
        (("ü" * 300, 70000, -1), True),
    ],
)
def test_what_pickle_writes_is_read(key: object, protocol: int):
    assert decode_key(_encoded(key, protocol), "file") == key


class _Executes:
    def __reduce__(self):
        return os.mkdir, ("executed",)


@pytest.mark.parametrize(
    "key",
    [
        _encoded(((_Executes(),), False)),
        _encoded((["a"], False)),
        _encoded("transformer"),
        _encoded((("a",), "b")),
        _encoded((("a",), False))[:12],
        "transformer.wte.weight",
        "",
    ],
)
def test_anything_else_is_refused_and_not_run(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"file: the key .* was not read"):
        decode_key(key, "file")
    assert not list(tmp_path.iterdir())

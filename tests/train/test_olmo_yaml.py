"""The texts are written from the facts of the published runs, in the form of their files."""

from dataclasses import replace
from pathlib import Path

import pytest

from jaxpretrain.config.errors import InputError
from jaxpretrain.config.files import load_config
from jaxpretrain.data.token_files.masks import InstanceFilter
from jaxpretrain.optim.optimizers import Lion
from jaxpretrain.optim.schedules import (
    Constant,
    InverseSqrt,
    Triangular,
    WarmupCosine,
)
from jaxpretrain.train.experiment import Experiment, resolve
from jaxpretrain.train.olmo_yaml import OlmoYaml, read_olmo_yaml

CONFIGS = Path(__file__).parents[2] / "configs"

OLMO_7B = """
run_name: seven
seed: 6198
dry_run: false
wandb:
  name: ${run_name}
model:
  d_model: 4096
  n_heads: 32
  n_layers: 32
  mlp_hidden_size: 22016
  weight_tying: false
  alibi: false
  rope: true
  flash_attention: true
  attention_dropout: 0.0
  attention_layer_norm: false
  multi_query_attention: false
  include_bias: false
  block_type: sequential
  layer_norm_type: default
  layer_norm_with_affine: false
  bias_for_layer_norm: false
  attention_layer_norm_with_affine: false
  activation_type: swiglu
  residual_dropout: 0.0
  embedding_dropout: 0.0
  max_sequence_length: 2048
  vocab_size: 50280
  embedding_size: 50304
  eos_token_id: 50279
  pad_token_id: 1
  init_device: meta
  init_fn: mitchell
compile:
  fullgraph: false
optimizer:
  name: adamw
  learning_rate: 3.0e-4
  weight_decay: 0.1
  betas: [0.9, 0.95]
  metrics_log_interval: 10
scheduler:
  name: linear_with_warmup
  t_warmup: 5000
  alpha_f: 0.1
  grad_clip_warmup_steps: 1000
  grad_clip_warmup_factor: 10.0
tokenizer:
  identifier: tokenizers/pii-special.json
save_folder: runs/${run_name}
save_interval: 1000
max_duration: 2e12T
global_train_batch_size: 2048
device_train_microbatch_size: 2
precision: amp_bf16
fsdp:
  wrapping_strategy: by_block
  precision: mixed
max_grad_norm: 1.0
max_grad_norm_ratio: null
eval_interval: ${save_interval}
evaluators:
  - label: piqa
    type: downstream
data:
  pad_direction: right
  num_workers: 16
  drop_last: true
  paths:
    - https://a.example/dolma/part-1.npy
    - s3://bucket/dolma/part-0.npy
    - https://a.example/dolma/part-1.npy
"""

# Differences from the text above: (old, new).
OLMO_2_7B = [
    (
        "layer_norm_type: default",
        "layer_norm_type: rms\n  layer_norm_eps: 1e-6\n  norm_after: true",
    ),
    ("  layer_norm_with_affine: false", "  layer_norm_with_affine: true"),
    ("  attention_layer_norm_with_affine: false", "  attention_layer_norm_with_affine: true"),
    ("attention_layer_norm: false", "attention_layer_norm: true\n  rope_theta: 500000"),
    ("  multi_query_attention: false\n", ""),
    ("max_sequence_length: 2048", "max_sequence_length: 4096"),
    ("vocab_size: 50280", "vocab_size: 100278"),
    ("embedding_size: 50304", "embedding_size: 100352"),
    ("init_fn: mitchell", "init_fn: normal\n  init_std: 0.02\n  init_cutoff_factor: 3"),
    ("optimizer:", "softmax_auxiliary_loss: true\nauxiliary_loss_multiplier: 1e-5\noptimizer:"),
    ("  betas:", "  eps: 1e-8\n  decay_norm_and_bias: true\n  decay_embeddings: false\n  betas:"),
    ("name: linear_with_warmup\n  t_warmup: 5000", "name: cosine_with_warmup\n  units: tokens"),
    ("  grad_clip_warmup_steps: 1000\n  grad_clip_warmup_factor: 10.0\n", ""),
    (
        "  alpha_f: 0.1",
        "  alpha_f: 0.1\n  t_warmup: 8388608000\n  t_max: 5e12\n  warmup_min_lr: 0.0",
    ),
    ("max_duration: 2e12T", "max_duration: 1ep\nfused_loss: true\nstop_at: 928_646"),
    ("global_train_batch_size: 2048", "global_train_batch_size: 1024"),
    (
        "  drop_last: true",
        "  drop_last: true\n  memmap_dtype: uint32\n  instance_filter:\n"
        "    repetition_max_period: 13\n    repetition_min_period: 1\n    repetition_max_count: 32",
    ),
]


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The run of OLMO_7B with some differences."""
    monkeypatch.setenv("JAXPRETRAIN_CACHE", str(tmp_path / "cache"))

    def read(*changes: tuple[str, str], ignored: tuple[str, ...] = ()) -> OlmoYaml:
        text = OLMO_7B
        for old, new in changes:
            assert text.count(old) >= 1, old
            text = text.replace(old, new, 1)
        file = tmp_path / "run.yaml"
        file.write_text(text)
        return read_olmo_yaml(file, ignored)

    return read


def comparable(experiment: Experiment) -> Experiment:
    """Resolved, without what no YAML of OLMo's says: where things lie, what is kept, memory."""
    experiment = resolve(experiment)
    return replace(
        experiment,
        data=replace(experiment.data, root=None, file_list=None),
        checkpoint=type(experiment.checkpoint)(),
    )


def shipped(name: str) -> Experiment:
    return comparable(load_config(str(CONFIGS / f"{name}.py")))


def test_the_first_7b_is_its_shipped_config(read):
    assert comparable(read().experiment) == shipped("olmo7b")


def test_the_second_7b_is_its_shipped_config(read):
    """Told by `stop_at` where its one epoch is over, which the file does not say."""
    assert comparable(read(*OLMO_2_7B).experiment) == shipped("olmo2_7b")


def test_every_key_has_its_line(read):
    lines = read(*OLMO_2_7B).report
    by_key = {line.partition(" = ")[0]: line for line in lines}
    assert len(by_key) == len(lines) > 60
    assert by_key["model.d_model"] == "model.d_model = 4096: used"
    assert by_key["data.paths"] == "data.paths = (3 entries): used"
    assert "the z-loss has 1e-4" in by_key["auxiliary_loss_multiplier"]
    assert by_key["evaluators"].endswith("no effect: not evaluated; training is the same")
    assert by_key["model.eos_token_id"].endswith("attention crosses the ends of documents")


def test_paths_keep_their_order_and_repetitions_below_the_root(read):
    data = read().experiment.data
    assert data.root is None
    lines = Path(data.file_list).read_text().splitlines()
    assert lines == ["dolma/part-1.npy", "dolma/part-0.npy", "dolma/part-1.npy"]


def test_local_paths_need_no_root(read, tmp_path):
    local = [
        ("https://a.example/dolma/part-1.npy", str(tmp_path / "b.npy")),
        ("s3://bucket/dolma/part-0.npy", "a.npy"),
        ("    - https://a.example/dolma/part-1.npy\n", ""),
    ]
    data = read(*local).experiment.data
    lines = Path(data.file_list).read_text().splitlines()
    assert [Path(data.root) / line for line in lines] == [tmp_path / "b.npy", tmp_path / "a.npy"]


@pytest.mark.parametrize(
    ("name", "schedule"),
    [
        ("cosine_with_warmup", WarmupCosine(start=3e-5, peak=3e-4, end=3e-5, warmup="5000 steps")),
        (
            "cosine_linear_envelope",
            WarmupCosine(
                start=3e-5, peak=3e-4, end=3e-5, warmup="5000 steps", shape="cosine_linear"
            ),
        ),
        (
            "max_scheduler",
            WarmupCosine(
                start=3e-5, peak=3e-4, end=3e-5, warmup="5000 steps", shape="cosine_or_inverse_sqrt"
            ),
        ),
        ("inverse_sqrt_with_warmup", InverseSqrt(start=3e-5, peak=3e-4, warmup="5000 steps")),
        ("constant_with_warmup", Constant(start=3e-5, peak=3e-4, warmup="5000 steps")),
        ("constant", Constant(start=3e-4, peak=3e-4, warmup="0 steps")),
    ],
)
def test_every_scheduler_of_olmo_has_its_schedule(read, name, schedule):
    found = read(("linear_with_warmup", name)).experiment.optim.schedule
    assert found == schedule


def test_a_run_that_stops_early_keeps_its_schedule(read):
    """Stage 2 of OLMo 2: zero at the planned tokens, ten steps before the end."""
    changes = [("t_warmup: 5000", "t_warmup: 0"), ("alpha_f: 0.1", "alpha_f: 0")]
    changes += [("max_duration: 2e12T", "max_duration: 50e9T\nstop_at: 11931")]
    experiment = resolve(read(*changes).experiment)
    schedule = experiment.optim.schedule
    assert isinstance(schedule, Triangular)
    assert (schedule.horizon, schedule.end, experiment.train.duration) == (11_921, 0.0, 11_931)


@pytest.mark.parametrize(
    ("changes", "field", "value"),
    [
        ([("name: adamw", "name: lionw")], "optim", Lion),
        ([("max_duration: 2e12T", "max_duration: 2ep")], "train.duration", "2 epochs"),
        ([("max_duration: 2e12T", "max_duration: 739_328")], "train.duration", "739328 steps"),
        ([("  betas", "  decay_embeddings: true\n  betas")], "optim.decayed", "kernel embedding"),
        ([("precision: amp_bf16", "precision: fp32")], "model.dtype", "float32"),
        ([("fsdp:", "distributed_strategy: ddp\nfsdp:")], "model.residual_dtype", "float32"),
        ([("data:\n", "data:\n  generate_doc_lengths: true\n")], "model.document_end", 50279),
        ([("seed: 6198", "seed: 6198\nfused_loss: true")], "model.z_loss", 1e-4),
        ([("  multi_query_attention: false", "  n_kv_heads: 8")], "model.num_kv_heads", 8),
        ([("mlp_hidden_size: 22016", "mlp_ratio: 8")], "model.d_ff", 16384),
        ([("  mlp_hidden_size", "  mlp_ratio: 8\n  mlp_hidden_size")], "model.d_ff", 11008),
        (
            [("multi_query_attention: false", "multi_query_attention: true")],
            "model.num_kv_heads",
            1,
        ),
        ([("data:\n", "data:\n  instance_filter: {}\n")], "data.instance_filter", InstanceFilter()),
    ],
    ids=str,
)
def test_keys_become_fields(read, changes, field, value):
    found = read(*changes).experiment
    for name in field.split("."):
        found = getattr(found, name)
    if isinstance(value, type):
        assert isinstance(found, value)
    else:
        assert found == (tuple(value.split()) if isinstance(found, tuple) else value)


@pytest.mark.parametrize(
    ("change", "trouble"),
    [
        (("alibi: false", "alibi: true"), "model.alibi=True (here: False)"),
        (("include_bias: false", "include_bias: true"), "model.include_bias=True (here: False)"),
        (("  attention_dropout: 0.0\n", ""), "model.attention_dropout=0.1, which is not given"),
        (("  precision: mixed", "  precision: pure"), "fsdp.precision=pure (here: mixed)"),
        (("alpha_f: 0.1", "alpha_g: 0.1"), "scheduler.alpha_g=0.1 (not known here)"),
        (
            ("seed: 6198", "seed: 6198\nload_path: somewhere"),
            "load_path=somewhere (convert it, and set --config.init_from)",
        ),
        (("data:\n", "data:\n  seed: 7\n"), "data.seed=7 (here: None or 6198)"),
        (("type: default", "type: low_precision"), "model.layer_norm_type=low_precision"),
        (("  paths:\n", "  others:\n"), "data.paths names no token files"),
    ],
    ids=str,
)
def test_what_would_train_another_run_is_refused(read, change, trouble):
    with pytest.raises(InputError) as error:
        read(change)
    assert trouble in str(error.value)


def test_what_is_refused_can_be_ignored_by_name(read):
    change = ("seed: 6198", "seed: 6198\nload_path: somewhere")
    experiment, report = read(change, ignored=("load_path",))
    assert experiment == read().experiment
    assert "load_path = somewhere: ignored, as asked: what it says is not done" in report


def test_the_config_file_tells_every_key(read, tmp_path, capsys):
    report = read().report
    file = tmp_path / "run.yaml"
    experiment = load_config(f"{CONFIGS / 'olmo_yaml.py'}:{file}")
    assert experiment == read().experiment
    out, err = capsys.readouterr()
    assert out == "" and err.splitlines() == [f"{file}: {line}" for line in report]

    with pytest.raises(InputError, match="write ignore=KEY"):
        load_config(f"{CONFIGS / 'olmo_yaml.py'}:{file},model.alibi")

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from jaxpretrain.config import schema
from jaxpretrain.config.aliases import _NAMES, alias
from jaxpretrain.config.command import Parser
from jaxpretrain.config.errors import InputError
from jaxpretrain.config.files import load_config
from jaxpretrain.config.overrides import apply_overrides

CONFIGS = Path(__file__).parents[2] / "configs"


@dataclass(frozen=True)
class Triangular:
    peak: float = 1.0


@dataclass(frozen=True)
class Tail:
    inner: Triangular = Triangular()


@dataclass(frozen=True)
class Optimizer:
    schedule: Triangular | Tail = Triangular()


@dataclass(frozen=True)
class Train:
    batch_size: int = 8
    duration: str = "1000 steps"


@dataclass(frozen=True)
class Experiment:
    optim: Optimizer = Optimizer()
    train: Train = field(default_factory=Train)


@pytest.mark.parametrize(
    ("flag", "meant"),
    [
        ("--lr=1e-3", "--config.optim.schedule.peak"),
        ("--learning-rate=1e-3", "--config.optim.schedule.peak"),
        ("--batch_size=8", "--config.train.batch_size"),
        ("--steps=5", '--config.train.duration="N steps"'),
        ("--max_steps=5", '--config.train.duration="N steps"'),
        ("--epochs=2", '--config.train.duration="N epochs"'),
        ("--warmup=10", "--config.optim.schedule.warmup"),
        ("--wd=0.1", "--config.optim.weight_decay"),
        ("--seq_len=8", "--config.data.seq_len"),
        ("--output_dir=x", "--workdir"),
    ],
)
def test_a_flag_of_other_trainers_leads_to_the_field(flag: str, meant: str):
    parser = Parser(prog="main")
    parser.add_argument("--config")
    parser.add_argument("--workdir")
    with pytest.raises(InputError) as error:
        parser.parse_args([flag])
    assert str(error.value) == f"unknown flag {flag.partition('=')[0]}. Did you mean {meant}?"


def test_a_command_without_a_config_knows_no_fields():
    parser = Parser(prog="report")
    parser.add_argument("--workdir")
    with pytest.raises(InputError, match=r"^unknown flag --lr\. See --help\.$"):
        parser.parse_args(["--lr=1"])


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("optim.learning_rate", "--config.optim.schedule.peak"),
        ("lr", "--config.optim.schedule.peak"),
        ("optim.schedule.lr", "--config.optim.schedule.peak"),
        ("optimizer.lr", "--config.optim.schedule.peak"),
        ("train.steps", '--config.train.duration="N steps"'),
        ("epochs", '--config.train.duration="N epochs"'),
        ("train.bs", "--config.train.batch_size"),
    ],
)
def test_a_path_with_another_name_leads_to_the_field(path: str, meant: str):
    with pytest.raises(InputError) as error:
        apply_overrides(Experiment(), [(path, "1")])
    assert str(error.value) == f"--config.{path}: no such field. Did you mean {meant}?"


def test_a_field_that_lies_deeper_is_found():
    config = Experiment(optim=Optimizer(schedule=Tail()))
    with pytest.raises(InputError, match=r"Did you mean --config\.optim\.schedule\.inner\.peak\?$"):
        apply_overrides(config, [("lr", "1")])


def test_a_field_that_the_config_lacks_is_not_proposed():
    with pytest.raises(InputError) as error:
        apply_overrides(Experiment(), [("vocab_size", "1")])
    assert "model.vocab_size" not in str(error.value)


def test_every_alias_leads_to_a_field_of_a_shipped_config():
    paths = set()
    for name in ("olmo_nano", "sapiens_nano"):
        config = load_config(str(CONFIGS / f"{name}.py"))
        paths |= {".".join(keys) for keys, _, _ in schema.walk(config, type(config))}
    wanted = {target.partition("=")[0] for target in _NAMES if not target.startswith("--")}
    assert wanted <= paths


def test_no_name_has_two_meanings():
    names = [name for group in _NAMES.values() for name in group.split()]
    assert len(names) == len(set(names))
    assert alias("nonsense") is None

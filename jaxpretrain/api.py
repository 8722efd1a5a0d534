"""The names that configs are written with. They are promised to stay here wherever modules move.

    from jaxpretrain.api import AdamW, Decoder, Experiment, TextData, Train, Triangular

A name is imported when it is first asked for.
"""

import ast
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from jaxpretrain.config import errors

if TYPE_CHECKING:  # for type checkers and for `_homes`
    from jaxpretrain.config.errors import InputError as InputError
    from jaxpretrain.config.errors import nearest as nearest
    from jaxpretrain.config.files import load_config as load_config
    from jaxpretrain.data.images.image_sources import Folder as Folder
    from jaxpretrain.data.images.image_sources import Tfds as Tfds
    from jaxpretrain.data.images.images import Augment as Augment
    from jaxpretrain.data.images.images import ImageData as ImageData
    from jaxpretrain.data.images.shards import Shards as Shards
    from jaxpretrain.data.order.order import HashedOrder as HashedOrder
    from jaxpretrain.data.order.order import OlmoCoreOrder as OlmoCoreOrder
    from jaxpretrain.data.order.order import OlmoOrder as OlmoOrder
    from jaxpretrain.data.prepare.prepare_text import PrepareText as PrepareText
    from jaxpretrain.data.text.corpus import RawTokens as RawTokens
    from jaxpretrain.data.text.mixture import Mixture as Mixture
    from jaxpretrain.data.text.mixture import MixtureSource as MixtureSource
    from jaxpretrain.data.text.mixture import MixtureStage as MixtureStage
    from jaxpretrain.data.text.text import TextData as TextData
    from jaxpretrain.data.token_files.masks import InstanceFilter as InstanceFilter
    from jaxpretrain.evals.config import Eval as Eval
    from jaxpretrain.evals.harness import Harness as Harness
    from jaxpretrain.evals.linear_probe import LinearProbe as LinearProbe
    from jaxpretrain.evals.perplexity import Perplexity as Perplexity
    from jaxpretrain.evals.samples import Continuations as Continuations
    from jaxpretrain.evals.samples import Reconstructions as Reconstructions
    from jaxpretrain.models.layers import LayerNorm as LayerNorm
    from jaxpretrain.models.layers import RMSNorm as RMSNorm
    from jaxpretrain.models.olmo.config import FullMegatron as FullMegatron
    from jaxpretrain.models.olmo.config import Mitchell as Mitchell
    from jaxpretrain.models.olmo.config import Normal as Normal
    from jaxpretrain.models.olmo.decoder import Decoder as Decoder
    from jaxpretrain.models.olmo.rotary import Rope as Rope
    from jaxpretrain.models.olmo.rotary import Yarn as Yarn
    from jaxpretrain.models.olmo.variants import OLMO_SIZES as OLMO_SIZES
    from jaxpretrain.models.sapiens.model import VitMae as VitMae
    from jaxpretrain.models.sapiens.variants import SAPIENS_SIZES as SAPIENS_SIZES
    from jaxpretrain.optim.optimizers import Adafactor as Adafactor
    from jaxpretrain.optim.optimizers import AdamW as AdamW
    from jaxpretrain.optim.optimizers import Lion as Lion
    from jaxpretrain.optim.optimizers import Muon as Muon
    from jaxpretrain.optim.optimizers import RateScaling as RateScaling
    from jaxpretrain.optim.schedules import BoltOnWarmup as BoltOnWarmup
    from jaxpretrain.optim.schedules import Constant as Constant
    from jaxpretrain.optim.schedules import InverseSqrt as InverseSqrt
    from jaxpretrain.optim.schedules import LinearTail as LinearTail
    from jaxpretrain.optim.schedules import Triangular as Triangular
    from jaxpretrain.optim.schedules import WarmupCosine as WarmupCosine
    from jaxpretrain.optim.schedules import WarmupStableDecay as WarmupStableDecay
    from jaxpretrain.parallel.mesh import Mesh as Mesh
    from jaxpretrain.sweeps.parsing import make_sweep as make_sweep
    from jaxpretrain.train.experiment import Checkpoint as Checkpoint
    from jaxpretrain.train.experiment import Ema as Ema
    from jaxpretrain.train.experiment import Experiment as Experiment
    from jaxpretrain.train.experiment import Monitor as Monitor
    from jaxpretrain.train.experiment import Skip as Skip
    from jaxpretrain.train.experiment import Stage as Stage
    from jaxpretrain.train.experiment import Train as Train
    from jaxpretrain.train.experiment import resolve as resolve
    from jaxpretrain.train.olmo_yaml import read_olmo_yaml as read_olmo_yaml


def _homes() -> dict[str, str | None]:
    """Returns the module of each name, read from the imports above, which never run."""
    tree = ast.parse(Path(__file__).read_text())
    guarded = (node for block in tree.body if isinstance(block, ast.If) for node in block.body)
    imports = [node for node in guarded if isinstance(node, ast.ImportFrom)]
    return {alias.name: node.module for node in imports for alias in node.names}


_HOME_OF = _homes()

__all__ = sorted(_HOME_OF)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> object:
    """Returns a promised name from the module that defines it."""
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"jaxpretrain.api has no {name!r}.{errors.nearest(name, __all__)}")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpretrain.models.sapiens.model import VitMae, VitMaeModel

TINY = VitMae(
    patch_size=2,
    d_model=24,
    num_layers=2,
    num_heads=4,
    d_ff=40,
    decoder_d_model=16,
    decoder_num_layers=1,
    decoder_num_heads=2,
    dtype="float32",
    remat="none",
)


SIZE = (6, 8)  # 12 patches, 3 of them seen


def build(config: VitMae, size: tuple[int, int] = SIZE, **options: Any) -> VitMaeModel:
    return config.build({"images": ((*size, 3), "uint8")}, platform="cpu", **options)


def make_params(config: VitMae, std: float = 0.3) -> Any:
    """Random parameters; the scales of norms lie around one."""
    rng = np.random.default_rng(0)

    def draw(path: Any, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        return jnp.asarray(
            std * rng.normal(size=leaf.shape) + (path[-1].key == "scale"), leaf.dtype
        )

    shapes = jax.eval_shape(build(config).init, jax.random.key(0))
    return jax.tree_util.tree_map_with_path(draw, shapes)


def make_images(batch: int = 2, size: tuple[int, int] = SIZE) -> jax.Array:
    shape = (batch, *size, 3)
    return jnp.asarray(np.random.default_rng(1).integers(256, size=shape), jnp.uint8)

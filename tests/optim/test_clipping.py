import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxpretrain.optim.clipping import clip_by_global_norm


def test_clipping_is_global_and_has_torchs_small_number():
    clip = clip_by_global_norm(1.0)
    gradients = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([[0.0, 4.0]])}
    clipped, _ = clip.update(gradients, clip.init(gradients))
    np.testing.assert_allclose(clipped["a"], np.array([3.0, 0.0]) / (5.0 + 1e-6), rtol=1e-6)
    np.testing.assert_allclose(clipped["b"], np.array([[0.0, 4.0]]) / (5.0 + 1e-6), rtol=1e-6)

    small = jax.tree.map(lambda g: 0.1 * g, gradients)
    kept, _ = clip.update(small, clip.init(small))
    jax.tree.map(np.testing.assert_array_equal, kept, small)

    tiny = clip_by_global_norm(1e-6)  # where the 1e-6 is half of the denominator
    halved, _ = tiny.update({"a": jnp.array([1e-6])}, tiny.init({}))
    np.testing.assert_allclose(halved["a"], 0.5e-6, rtol=1e-5)


def test_a_higher_threshold_at_first_comes_one_update_late():
    """OLMo-7B's 1000 updates at ten times the norm are its updates 2 to 1001."""
    clip = clip_by_global_norm(1.0, warmup=3, warmup_factor=10.0)
    gradients = {"a": jnp.full(4, 100.0)}
    state, norms = clip.init(gradients), []
    for _ in range(6):
        clipped, state = clip.update(gradients, state)
        norms.append(optax.global_norm(clipped))
    np.testing.assert_allclose(norms, [1.0, 10.0, 10.0, 10.0, 1.0, 1.0], rtol=1e-6)


def test_without_a_warmup_there_is_nothing_to_remember():
    assert not jax.tree.leaves(clip_by_global_norm(1.0).init({"a": jnp.zeros(2)}))

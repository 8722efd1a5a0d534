import numpy as np
import pytest

from jaxpretrain.diagnosis.intent import TrainingPlan
from jaxpretrain.diagnosis.rules.layers import attention_logits, blow_up, update_ratios

PLAN = TrainingPlan(10_000, [], lambda s: 0 * np.asarray(s) + 1e-3)
STEPS = np.arange(100, 4001, 100)
NOISE = np.exp(0.2 * np.random.default_rng(0).normal(size=(40, 6)))


def layers(history, name, values):
    return history(STEPS, {f"signals/{name}/blocks": values})


def test_logits_that_grow_on_above_the_limit_are_named_with_their_layer(history):
    logits = 20 * NOISE
    logits[:, 4] = np.geomspace(10, 1000, 40)
    run = layers(history, "attention_logit", logits)
    assert [*attention_logits(run.until(1500), PLAN)] == []
    (finding,) = attention_logits(run, PLAN)
    assert "layer 4 has grown from 84 to 889" in finding.reading
    assert finding.evidence["layer"] == 4 and 1900 < finding.first < 2200


def test_logits_that_are_high_and_stay_or_grow_and_stay_low_are_fine(history):
    assert [*attention_logits(layers(history, "attention_logit", 300 * NOISE), PLAN)] == []
    growing = np.geomspace(1, 60, 40)[:, None] * NOISE
    assert [*attention_logits(layers(history, "attention_logit", growing), PLAN)] == []


@pytest.mark.parametrize("name", ["grad_norm", "param_norm"])
def test_a_layer_that_leaves_the_others_behind_is_named(history, name):
    norms = NOISE.copy()
    norms[30:, 2] *= 20
    run = layers(history, name, norms)
    assert [*blow_up(run.until(3000), PLAN)] == []
    (finding,) = blow_up(run.until(3400), PLAN)
    assert f"{name.replace('_', ' ')} of layer 2" in finding.reading
    assert finding.subject.endswith("layer 2")


def test_the_layer_that_makes_activations_large_is_named_not_those_behind_it(history):
    rms = np.ones((40, 6)) * NOISE
    rms[30:, 3:] *= 20
    (finding,) = blow_up(layers(history, "activation_rms", rms).until(3300), PLAN)
    assert "activation size of layer 3" in finding.reading


def test_layers_that_grow_together_or_for_a_step_are_fine(history):
    together, single = NOISE.copy(), NOISE.copy()
    together[30:] *= 20
    single[30, 2] *= 100
    for norms in (together, single):
        for last in range(1200, 4001, 100):
            assert [*blow_up(layers(history, "grad_norm", norms).until(last), PLAN)] == []


def test_update_ratios_are_those_of_all_towers_of_late(history):
    values = {
        f"signals/update_ratio/{name}": np.full((40, 2), value)
        for name, value in (("encoder/blocks", 1e-3), ("decoder/blocks", 4e-3), ("blocks/up", 1.0))
    }
    assert update_ratios(history(STEPS, values)) == (1e-3, 4e-3)
    assert update_ratios(history(STEPS, {"train/loss": STEPS})) is None

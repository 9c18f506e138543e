"""Optimizers against a plain NumPy version in float64, and under replicas."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Callable

import numpy as np
import pytest
import tensorflow as tf

from bert_tf import optimization
from bert_tf.config import OptimizerConfig
from bert_tf.distribution import cpu_strategy
from bert_tf.optimization import Optimizer

TOTAL_STEPS = 100
NUM_LAYERS = 2
SHAPES = {
    "bert/embeddings/word_embeddings": (11, 4),
    "bert/encoder/layer_0/attention/self/query/kernel": (4, 4),
    "bert/encoder/layer_0/attention/self/query/bias": (4,),
    "bert/encoder/layer_1/output/LayerNorm/gamma": (4,),
    "output_weights": (4, 4),
}
# By hand: the embeddings are one level below layer 0, and heads are on top.
LEVELS_BELOW_TOP = (3, 2, 2, 1, 0)
DECAYED = (True, True, False, False, True)

Arrays = list[np.ndarray]
Gradients = Callable[[int, Arrays], Arrays]


def initial_weights() -> Arrays:
    rng = np.random.default_rng(1)
    return [rng.normal(size=shape).astype(np.float32) for shape in SHAPES.values()]


NOISE = [
    [rng.normal(size=shape).astype(np.float32) for shape in SHAPES.values()]
    for rng in map(np.random.default_rng, range(100, 100 + TOTAL_STEPS))
]


def run_numpy(config: OptimizerConfig, steps: int) -> tuple[Arrays, Arrays, Arrays]:
    """The algorithms as the papers print them, in float64, without any code of the package."""
    weights = [weight.astype(np.float64) for weight in initial_weights()]
    m = [np.zeros_like(weight) for weight in weights]
    v = [np.zeros_like(weight) for weight in weights]
    for step in range(steps):
        gradients = [0.5 * w + g for w, g in zip(weights, NOISE[step], strict=True)]
        norm = math.sqrt(sum((g**2).sum() for g in gradients))
        if config.clip_norm:
            gradients = [g * min(1.0, config.clip_norm / norm) for g in gradients]
        for i, gradient in enumerate(gradients):
            rate = numpy_rate(config, step) * config.layer_decay ** LEVELS_BELOW_TOP[i]
            m[i] = config.beta_1 * m[i] + (1 - config.beta_1) * gradient
            v[i] = config.beta_2 * v[i] + (1 - config.beta_2) * gradient**2
            moments = (m[i], v[i])
            update = numpy_update(config, step + 1, gradient, moments)
            if DECAYED[i] and config.name != "sgd":
                update = update + config.weight_decay * weights[i]
            if DECAYED[i] and config.name == "lamb":
                update = update * np.linalg.norm(weights[i]) / np.linalg.norm(update)
            weights[i] = weights[i] - rate * update
    return weights, m, v


def numpy_update(
    config: OptimizerConfig, count: int, gradient: np.ndarray, moments: tuple[np.ndarray, ...]
) -> np.ndarray:
    m, v = moments
    if config.name == "sgd":
        return gradient
    if config.name == "bert_adamw":
        return m / (np.sqrt(v) + config.epsilon)
    m_hat = m / (1 - config.beta_1**count)
    v_hat = v / (1 - config.beta_2**count)
    return m_hat / (np.sqrt(v_hat) + config.epsilon)


def numpy_rate(config: OptimizerConfig, step: int) -> float:
    warmup = int(TOTAL_STEPS * config.warmup_proportion)
    if step < warmup:
        return config.learning_rate * step / warmup
    if config.schedule == "constant":
        return config.learning_rate
    power = {"linear": 1.0, "polynomial": config.power}[config.schedule]
    left = (1 - step / TOTAL_STEPS) ** power
    return (config.learning_rate - config.end_learning_rate) * left + config.end_learning_rate


def run(
    config: OptimizerConfig, steps: int, strategy: tf.distribute.Strategy | None = None
) -> tuple[Optimizer, dict[str, np.ndarray]]:
    """Trains inside one compiled loop, as the training loop does; gradients depend on weights."""
    strategy = strategy or tf.distribute.get_strategy()
    noise = [tf.constant(np.stack(values)) for values in zip(*NOISE, strict=True)]
    with strategy.scope():
        variables = {
            name: tf.Variable(weight, name=name)
            for name, weight in zip(SHAPES, initial_weights(), strict=True)
        }
        optimizer = Optimizer(config, variables, TOTAL_STEPS, NUM_LAYERS)

    def replica_step() -> tf.Tensor:
        step = optimizer.step.read_value()
        pairs = zip(variables.values(), noise, strict=True)
        gradients = [0.5 * weight + values[step] for weight, values in pairs]
        return optimizer.apply_gradients(gradients)["gradient_norm"]

    @tf.function
    def loop() -> None:
        for _ in tf.range(steps):
            strategy.run(replica_step)

    loop()
    assert optimizer.step.numpy() == steps
    return optimizer, {name: value.numpy() for name, value in (variables | optimizer.slots).items()}


@pytest.mark.parametrize("name", optimization.RULES)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"schedule": "constant", "clip_norm": 0.0, "beta_1": 0.0, "weight_decay": 0.0},
        {"schedule": "polynomial", "power": 2.0, "end_learning_rate": 1e-3, "layer_decay": 0.8},
        {
            "warmup_proportion": 0.0,
            "beta_1": 0.7,
            "beta_2": 0.95,
            "epsilon": 1e-3,
            "clip_norm": 3.0,
        },
    ],
    ids=["defaults", "constant", "polynomial", "other_moments"],
)
def test_hundred_steps_equal_numpy(name: str, changes: dict[str, float | str]) -> None:
    config = dataclasses.replace(OptimizerConfig(name=name, learning_rate=0.02), **changes)
    optimizer, values = run(config, TOTAL_STEPS)
    weights, m, v = run_numpy(config, TOTAL_STEPS)
    for i, variable in enumerate(SHAPES):
        np.testing.assert_allclose(values[variable], weights[i], rtol=2e-4, atol=2e-5)
        if name != "sgd":
            np.testing.assert_allclose(values[f"{variable}/adam_m"], m[i], rtol=1e-3, atol=2e-5)
            np.testing.assert_allclose(values[f"{variable}/adam_v"], v[i], rtol=1e-3, atol=1e-6)
    moved = max(np.abs(w - w0).max() for w, w0 in zip(weights, initial_weights(), strict=True))
    assert moved > 0.05  # else the comparison would say nothing
    assert set(optimizer.slots) == set(values) - set(SHAPES)


@pytest.mark.parametrize("beta", [0.0, 0.9, 0.999])
@pytest.mark.parametrize("count", [1, 2, 1000])
def test_bias_correction_keeps_its_digits(beta: float, count: int) -> None:
    """1 - 0.999 in float32 is wrong by 5e-5."""
    correction = optimization.one_minus_power(beta, tf.constant(float(count)))
    assert float(correction) == pytest.approx(1.0 - beta**count, rel=1e-6)


@pytest.mark.parametrize(("name", "replicas"), [("adamw", 2), ("lamb", 2), ("adamw", 4)])
def test_replicas_change_no_bit(name: str, replicas: int) -> None:
    config = OptimizerConfig(name=name, learning_rate=0.02, layer_decay=0.9)
    strategy = tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(replicas)])
    optimizer, mirrored = run(config, 10, strategy)
    _, single = run(config, 10)
    for variable, value in single.items():
        np.testing.assert_array_equal(mirrored[variable], value)
    for variable in (*optimizer.variables_by_name.values(), *optimizer.slots.values()):
        copies = strategy.experimental_local_results(variable)
        assert len(copies) == replicas
        for copy in copies:
            np.testing.assert_array_equal(copy, copies[0])


def test_two_runs_give_the_same_bits() -> None:
    config = OptimizerConfig(name="lamb", learning_rate=0.02)
    first, second = run(config, 20)[1], run(config, 20)[1]
    for name, value in first.items():
        np.testing.assert_array_equal(second[name], value)


def make_optimizer(
    config: OptimizerConfig, weight: list[float], name: str = "kernel", loss_scaling: bool = False
) -> tuple[tf.Variable, Optimizer]:
    variable = tf.Variable(weight, name=name)
    return variable, Optimizer(config, {name: variable}, 10, 1, loss_scaling)


def test_slots_are_named_as_in_the_original_checkpoints() -> None:
    _, optimizer = make_optimizer(OptimizerConfig(), [1.0], "bert/pooler/dense/bias")
    assert list(optimizer.slots) == [
        "bert/pooler/dense/bias/adam_m",
        "bert/pooler/dense/bias/adam_v",
    ]
    assert optimizer.step.name == "global_step:0"
    assert optimizer.step.dtype == tf.int64
    assert list(optimizer.saved_variables()) == [*optimizer.slots, "global_step"]


def test_trust_ratio_is_one_where_a_norm_is_zero() -> None:
    config = OptimizerConfig(
        name="lamb", learning_rate=0.1, warmup_proportion=0.0, schedule="constant"
    )
    from_zero, optimizer = make_optimizer(config, [0.0, 0.0])
    optimizer.apply_gradients([tf.constant([0.5, -0.5])])
    np.testing.assert_allclose(from_zero, [-0.1, 0.1], rtol=1e-5)  # rate * sign, as Adam
    still, optimizer = make_optimizer(dataclasses.replace(config, weight_decay=0.0), [1.0, 2.0])
    optimizer.apply_gradients([tf.zeros([2])])
    np.testing.assert_array_equal(still, [1.0, 2.0])


def test_norm_before_clipping_and_rate_are_returned() -> None:
    config = OptimizerConfig(name="sgd", learning_rate=0.5, warmup_proportion=0.0)
    weight, optimizer = make_optimizer(config, [0.0, 0.0])
    step = optimizer.apply_gradients([tf.constant([3.0, 4.0])])
    assert step["gradient_norm"] == 5.0
    assert step["learning_rate"] == 0.5
    assert step["usable"]
    np.testing.assert_allclose(weight, [-0.3, -0.4], rtol=1e-6)
    step = optimizer.apply_gradients([tf.constant([0.3, 0.4])])  # short enough already
    assert step["learning_rate"] == np.float32(0.45)
    np.testing.assert_allclose(weight, [-0.3 - 0.135, -0.4 - 0.18], rtol=1e-6)


@pytest.mark.parametrize("broken", [math.inf, math.nan])
def test_broken_gradients_show(broken: float) -> None:
    weight, optimizer = make_optimizer(OptimizerConfig(warmup_proportion=0.0), [1.0, 1.0])
    step = optimizer.apply_gradients([tf.constant([broken, 0.0])])
    assert not step["usable"]
    assert not np.isfinite(step["gradient_norm"])
    assert np.isnan(weight).all()


def test_loss_scaling_leaves_out_a_step_that_overflowed() -> None:
    config = OptimizerConfig(warmup_proportion=0.0)
    weight, optimizer = make_optimizer(config, [1.0, 1.0], loss_scaling=True)
    before = float(optimizer.loss_scale)
    assert optimizer.apply_gradients([tf.constant([math.inf, 0.0])])["usable"]
    np.testing.assert_array_equal(weight, [1.0, 1.0])
    for slot in optimizer.slots.values():
        np.testing.assert_array_equal(slot, [0.0, 0.0])
    assert optimizer.loss_scale == before / 2
    optimizer.apply_gradients([tf.constant([1.0, 0.0])])
    assert weight[0] < 1.0
    assert optimizer.loss_scale == before / 2


@pytest.mark.parametrize("replicas", [1, 2])
def test_a_weight_without_a_gradient_stays_and_counts_its_own_uses(replicas: int) -> None:
    """As in `torch.optim.AdamW`: the first update is a whole step, however late it comes."""
    rates = {"warmup_proportion": 0.0, "schedule": "constant", "clip_norm": 0.0}
    config = OptimizerConfig(learning_rate=1e-3, weight_decay=0.1, **rates)
    strategy = cpu_strategy(replicas)
    with strategy.scope():
        weights = {name: tf.Variable([1.0, 1.0], name=name) for name in ("always", "late")}
        optimizer = Optimizer(config, weights, TOTAL_STEPS, NUM_LAYERS, counts_uses=True)

    @tf.function
    def step(late: bool) -> None:
        gradients = [tf.ones([2]), tf.ones([2]) if late else None]
        strategy.run(lambda: optimizer.apply_gradients(gradients))

    for _ in range(20):
        step(False)
    np.testing.assert_array_equal(weights["late"].numpy(), [1.0, 1.0])
    assert not any(optimizer.slots[f"late/adam_{kind}"].numpy().any() for kind in "mv")
    assert weights["always"].numpy()[0] < 0.99
    step(True)
    np.testing.assert_allclose(weights["late"].numpy(), 1.0 - 1e-3 * (1.0 + 0.1), rtol=1e-5)
    counts = {name: int(uses.numpy()) for name, uses in optimizer.uses.items()}
    assert counts == {"always/uses": 21, "late/uses": 1}
    assert counts.keys() <= optimizer.saved_variables().keys()
    assert optimizer.step.numpy() == 21


def test_one_gradient_for_every_variable() -> None:
    _, optimizer = make_optimizer(OptimizerConfig(), [1.0])
    with pytest.raises(ValueError, match="shorter"):
        optimizer.apply_gradients([])


@pytest.mark.parametrize("schedule", optimization.SCHEDULES)
def test_schedules(schedule: str) -> None:
    config = OptimizerConfig(
        learning_rate=1e-3, schedule=schedule, power=2.0, end_learning_rate=1e-5
    )
    for step in (0, 1, 9, 10, 11, 50, 99):
        rate = optimization.learning_rate(config, TOTAL_STEPS, tf.constant(step, tf.int64))
        assert rate.dtype == tf.float32
        assert rate.shape == []
        assert float(rate) == pytest.approx(numpy_rate(config, step), rel=1e-5)


def test_schedule_of_the_original_release() -> None:
    """The peak is not reached: at the end of the warm-up the decay has run for as long."""
    rate = functools.partial(
        optimization.learning_rate, OptimizerConfig(learning_rate=1e-3, warmup_proportion=0.25), 20
    )
    rates = [float(rate(tf.constant(step, tf.int64))) for step in (0, 1, 4, 5, 6, 19, 20, 25)]
    expected = [0.0, 2e-4, 8e-4, 7.5e-4, 7e-4, 5e-5, 0.0, 0.0]
    np.testing.assert_allclose(rates, expected, rtol=1e-5, atol=1e-9)


def test_weight_decay_exclusions() -> None:
    assert [optimization.decays(name) for name in SHAPES] == list(DECAYED)
    assert optimization.decays("bert/embeddings/token_type_embeddings")
    assert optimization.decays("bert/pooler/dense/kernel")
    assert not optimization.decays("decoder/layer_norm/scale")
    assert not optimization.decays("cls/predictions/output_bias")


def test_layer_scales() -> None:
    scales = [optimization.layer_scale(name, NUM_LAYERS, 0.5) for name in SHAPES]
    assert scales == [0.5**level for level in LEVELS_BELOW_TOP]
    assert optimization.layer_scale("bert/embeddings/LayerNorm/beta", NUM_LAYERS, 0.5) == 0.5**3
    assert optimization.layer_scale("bert/pooler/dense/kernel", NUM_LAYERS, 0.5) == 1.0
    assert optimization.layer_scale("cls/predictions/output_bias", NUM_LAYERS, 0.5) == 1.0
    assert optimization.layer_scale("bert/encoder/layer_11/output/dense/kernel", 24, 0.5) == 0.5**13


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "lam"}, "optimizer.name='lam' is unknown. Did you mean 'lamb'? Choose one of"),
        ({"name": "zzzz"}, "'zzzz' is unknown. Choose one of adamw, bert_adamw, lamb, sgd."),
        ({"schedule": "linar"}, "optimizer.schedule='linar' is unknown. Did you mean 'linear'?"),
        ({"learning_rate": -1e-5}, "optimizer.learning_rate=-1e-05 must not be negative."),
        ({"learning_rate": math.nan}, "optimizer.learning_rate=nan must not be negative."),
        ({"end_learning_rate": -1.0}, "optimizer.end_learning_rate=-1.0 must not be negative."),
        ({"weight_decay": -0.1}, "optimizer.weight_decay=-0.1 must not be negative."),
        ({"clip_norm": -1.0}, "optimizer.clip_norm=-1.0 must not be negative."),
        ({"warmup_proportion": 1.1}, "optimizer.warmup_proportion=1.1 must be from 0 to 1."),
        ({"warmup_proportion": -0.1}, "optimizer.warmup_proportion=-0.1 must be from 0 to 1."),
        ({"beta_2": 1.0}, "optimizer.beta_2=1.0 must be at least 0 and below 1."),
        ({"epsilon": 0.0}, "optimizer.epsilon=0.0 must be above 0."),
        ({"power": 0.0}, "optimizer.power=0.0 must be above 0."),
        ({"layer_decay": 0.0}, "optimizer.layer_decay=0.0 must be above 0 and at most 1"),
    ],
)
def test_impossible_settings(changes: dict[str, float | str], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        optimization.check(dataclasses.replace(OptimizerConfig(), **changes))


def test_steps_are_at_least_one() -> None:
    optimization.check(OptimizerConfig(), 1)
    with pytest.raises(ValueError, match="A run of 0 steps trains nothing; set"):
        optimization.check(OptimizerConfig(), 0)

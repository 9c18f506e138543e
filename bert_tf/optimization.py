"""Learning-rate schedules and the optimizers: AdamW, the original AdamW of BERT, LAMB and SGD.

Each rule is a pure function of values. `Optimizer` owns the slots and the step, clips by the norm
of the global gradient, and applies the rule to every variable under any `tf.distribute` strategy.
"""

from __future__ import annotations

import difflib
import functools
import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from bert_tf.config import OptimizerConfig

SCHEDULES = ("linear", "polynomial", "constant")
# The original release's create_optimizer looks for "bias" anywhere in a name. It ends the names of
# all biases, and a head may be named after its task.
NOT_DECAYED = re.compile(r"LayerNorm|layer_norm|bias$")


class Rates(NamedTuple):
    """What differs between steps or between variables: scalars, float32 where not said."""

    learning_rate: tf.Tensor  # of the schedule, times the variable's layer scale
    weight_decay: tf.Tensor  # 0 where a variable is excluded
    gradient_scale: tf.Tensor  # 1, or less where the global gradient is clipped
    correction_1: tf.Tensor  # 1 - beta_1^t with t = 1, 2, ...
    correction_2: tf.Tensor  # 1 - beta_2^t
    adapts: tf.Tensor  # bool: whether LAMB's trust ratio applies
    finite: tf.Tensor  # bool: whether the gradient is made of numbers


Settings = tuple[float, bool]  # scale of the learning rate; whether the variable is decayed
RatesBySettings = dict[Settings, Rates]
Values = tuple[tf.Tensor, ...]  # (weight,) or (weight, m, v), all of the variable's shape
Rule = Callable[[OptimizerConfig, Rates, tf.Tensor, Values], Values]


def adamw(config: OptimizerConfig, rates: Rates, gradient: tf.Tensor, values: Values) -> Values:
    """Decoupled weight decay with bias correction (arXiv 1711.05101, algorithm 2).

    The same numbers as `torch.optim.AdamW`, which also adds epsilon to the corrected root.
    """
    weight, m, v = values
    m, v = moments(config, gradient * rates.gradient_scale, m, v)
    m_hat = m / rates.correction_1  # m / (1 - beta_1^t)
    v_hat = v / rates.correction_2  # v / (1 - beta_2^t)
    update = m_hat / (tf.sqrt(v_hat) + config.epsilon) + rates.weight_decay * weight
    return weight - rates.learning_rate * update, m, v


def bert_adamw(
    config: OptimizerConfig, rates: Rates, gradient: tf.Tensor, values: Values
) -> Values:
    """The original release's `AdamWeightDecayOptimizer`: AdamW without bias correction."""
    weight, m, v = values
    m, v = moments(config, gradient * rates.gradient_scale, m, v)
    update = m / (tf.sqrt(v) + config.epsilon) + rates.weight_decay * weight
    return weight - rates.learning_rate * update, m, v


def lamb(config: OptimizerConfig, rates: Rates, gradient: tf.Tensor, values: Values) -> Values:
    """LAMB (arXiv 1904.00962v5, algorithm 2) with phi the identity.

    Bias correction as in the paper. Variables without weight decay have no trust ratio either: the
    paper is silent, its authors' `LAMBOptimizer` does so by default.
    """
    weight, m, v = values
    m, v = moments(config, gradient * rates.gradient_scale, m, v)
    ratio = (m / rates.correction_1) / (tf.sqrt(v / rates.correction_2) + config.epsilon)
    update = ratio + rates.weight_decay * weight  # r + lambda x
    norms = tf.norm(weight), tf.norm(update)  # ||x||, ||r + lambda x||
    trusted = (norms[0] > 0.0) & (norms[1] > 0.0) & rates.adapts
    trust = tf.where(trusted, tf.math.divide_no_nan(*norms), 1.0)
    return weight - rates.learning_rate * trust * update, m, v


def sgd(config: OptimizerConfig, rates: Rates, gradient: tf.Tensor, values: Values) -> Values:
    """Plain gradient descent, without momentum or decay."""
    del config
    return (values[0] - rates.learning_rate * (gradient * rates.gradient_scale),)


def moments(
    config: OptimizerConfig, gradient: tf.Tensor, m: tf.Tensor, v: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Running means of the gradient and of its square."""
    m = config.beta_1 * m + (1.0 - config.beta_1) * gradient
    v = config.beta_2 * v + (1.0 - config.beta_2) * tf.square(gradient)
    return m, v


RULES: dict[str, Rule] = {"adamw": adamw, "bert_adamw": bert_adamw, "lamb": lamb, "sgd": sgd}
# Named as in the original release's training checkpoints: `<variable>/adam_m`, `<variable>/adam_v`.
SLOTS = {name: () if name == "sgd" else ("adam_m", "adam_v") for name in RULES}
COUNTER = {"trainable": False, "aggregation": tf.VariableAggregation.ONLY_FIRST_REPLICA}


# Fields, whether a value is valid, and what the error says of it.
LIMITS: tuple[tuple[tuple[str, ...], Callable[[float], bool], str], ...] = (
    (
        ("learning_rate", "end_learning_rate", "weight_decay", "clip_norm"),
        lambda value: value >= 0.0,
        "not be negative",
    ),
    (("power", "epsilon"), lambda value: value > 0.0, "be above 0"),
    (("warmup_proportion",), lambda value: 0.0 <= value <= 1.0, "be from 0 to 1"),
    (("beta_1", "beta_2"), lambda value: 0.0 <= value < 1.0, "be at least 0 and below 1"),
    (("layer_decay",), lambda value: 0.0 < value <= 1.0, "be above 0 and at most 1 (no decay)"),
)


def check(config: OptimizerConfig, total_steps: int = 1) -> None:
    """Raises ValueError for settings that cannot train, naming the field and the remedy."""
    check_choice("name", config.name, tuple(RULES))
    check_choice("schedule", config.schedule, SCHEDULES)
    for fields, is_valid, limit in LIMITS:
        for field in fields:
            value = getattr(config, field)
            if not (math.isfinite(value) and is_valid(value)):
                raise ValueError(f"optimizer.{field}={value} must {limit}.")
    if total_steps < 1:
        raise ValueError(
            f"A run of {total_steps} steps trains nothing; set train.steps or train.epochs so that "
            "there is at least 1 step."
        )


def check_choice(field: str, value: str, choices: tuple[str, ...]) -> None:
    """Raises ValueError where `value` is not among `choices`, with the nearest one."""
    if value not in choices:
        near = difflib.get_close_matches(value, choices, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"optimizer.{field}={value!r} is unknown.{hint} Choose one of {', '.join(choices)}."
        )


def learning_rate(config: OptimizerConfig, total_steps: int, step: tf.Tensor) -> tf.Tensor:
    """Rate of a step (int64 scalar, 0-based) as float32 scalar, in the original release's form.

    The decay runs over all `total_steps` from step 0, not from the end of the warm-up; the warm-up
    replaces its first steps, and step 0 has the rate 0. "linear" is the polynomial of power 1.
    """
    base = config.learning_rate
    warmup_steps = int(total_steps * config.warmup_proportion)
    done = tf.cast(step, tf.float32)
    decayed = tf.constant(base, tf.float32)
    if config.schedule != "constant":
        power = 1.0 if config.schedule == "linear" else config.power
        left = 1.0 - tf.minimum(done, float(total_steps)) / float(total_steps)
        decayed = (base - config.end_learning_rate) * left**power + config.end_learning_rate
    if warmup_steps == 0:
        return decayed
    return tf.where(done < float(warmup_steps), base * (done / float(warmup_steps)), decayed)


def moving(config: OptimizerConfig, variables: dict[str, tf.Variable]) -> dict[str, tf.Variable]:
    """The variables that learn: all but the frozen ones.

    Raises:
        ValueError: `frozen` is the beginning of no name, or of all.
    """
    learning = {
        name: variable
        for name, variable in variables.items()
        if not (config.frozen and name.startswith(config.frozen))
    }
    if not learning or (config.frozen and len(learning) == len(variables)):
        raise ValueError(
            f"config.optimizer.frozen={config.frozen!r} freezes {len(variables) - len(learning)} "
            f'of {len(variables)} weights; "bert/" leaves the head.'
        )
    return learning


def decays(name: str) -> bool:
    """Whether weight decay applies: not to biases and layer normalisation (original release)."""
    return not NOT_DECAYED.search(name)


def layer_scale(name: str, num_layers: int, layer_decay: float) -> float:
    """Factor of a variable's learning rate under layer-wise decay; layer l counts from 0.

    Heads and pooler: 1. Layer l: `layer_decay ** (L - l)`. Embeddings: `layer_decay ** (L + 1)`.
    ELECTRA's `_get_layer_lrs` has the same geometric form, but puts its head two levels above the
    top layer: its exponents are larger by one, except the head's.
    """
    if "/embeddings/" in f"/{name}":
        return layer_decay ** (num_layers + 1)
    found = re.search(r"encoder/layer_(\d+)/", name)
    return layer_decay ** (num_layers - int(found[1])) if found else 1.0


class Optimizer(tf.Module):
    """Moves `variables` by one rule, under any strategy.

    To be made inside `strategy.scope()`: slots are distributed as the variables are. Where steps
    differ in the variables that they use (`counts_uses`), bias correction takes the uses of each
    variable instead of the step, as `torch.optim` does.
    """

    def __init__(
        self,
        config: OptimizerConfig,
        variables: dict[str, tf.Variable],
        total_steps: int,
        num_layers: int,
        loss_scaling: bool = False,
        counts_uses: bool = False,
    ) -> None:
        super().__init__(name="optimizer")
        check(config, total_steps)
        self.config = config
        self.total_steps = total_steps
        self.variables_by_name = variables
        self.settings: dict[str, Settings] = {
            name: (layer_scale(name, num_layers, config.layer_decay), decays(name))
            for name in variables
        }
        self.step = tf.Variable(0, name="global_step", dtype=tf.int64, **COUNTER)
        self.slots = {
            f"{name}/{kind}": tf.Variable(
                tf.zeros(variable.shape), trainable=False, name=f"{name}/{kind}"
            )
            for name, variable in variables.items()
            for kind in SLOTS[config.name]
        }
        self.uses = {
            f"{name}/uses": tf.Variable(0, name=f"{name}/uses", dtype=tf.int64, **COUNTER)
            for name in (variables if counts_uses else ())
        }
        self.loss_scaling = LossScaling() if loss_scaling else None
        self.rule = compiled_rule(config)

    @property
    def loss_scale(self) -> tf.Tensor:
        """What the loss is multiplied by before its gradient is taken; float32 scalar."""
        if self.loss_scaling is None:
            return tf.constant(1.0)
        return self.loss_scaling.scale.read_value()

    def saved_variables(self) -> dict[str, tf.Variable]:
        """What a training checkpoint holds beside the weights."""
        scaling = {} if self.loss_scaling is None else self.loss_scaling.saved_variables()
        return self.slots | self.uses | {"global_step": self.step} | scaling

    @tf.autograph.experimental.do_not_convert  # converting it is a third of the time of a trace
    def apply_gradients(self, gradients: list[tf.Tensor | None]) -> dict[str, tf.Tensor]:
        """One step with dense float32 `gradients`, in the order of the variables.

        They are summed over replicas already: every replica brings the same. A variable whose
        gradient is None had no part in the step: it stays as it is, without decay, and so do its
        slots. Returns the step's `learning_rate`, the `gradient_norm` before clipping, and whether
        the gradient was `usable` (with loss scaling it always is: a step that overflowed is left
        out and scaled down).
        """
        rate = learning_rate(self.config, self.total_steps, self.step)
        norm = tf.linalg.global_norm(gradients)
        finite = tf.math.is_finite(norm)
        # A mirrored variable is written in cross-replica context, one local copy at a time
        # (`extended.update`). `merge_call` takes all replicas there together; without a strategy
        # and on TPU it is a plain call.
        context = tf.distribute.get_replica_context()
        pairs = zip(self.variables_by_name, gradients, strict=True)
        used = {name: gradient for name, gradient in pairs if gradient is not None}
        context.merge_call(self.update_all, args=(used, self.rates(rate, norm, finite)))
        usable = tf.constant(True) if self.loss_scaling is not None else finite
        return {"learning_rate": rate, "gradient_norm": norm, "usable": usable}

    def rates(self, rate: tf.Tensor, norm: tf.Tensor, finite: tf.Tensor) -> RatesBySettings:
        """The rates of this step, once for all variables with the same settings."""
        count = tf.cast(self.step, tf.float32) + 1.0  # t of the papers
        shared = Rates(
            learning_rate=rate,
            weight_decay=tf.constant(0.0),
            gradient_scale=clip_scale(norm, self.config.clip_norm),
            correction_1=one_minus_power(self.config.beta_1, count),
            correction_2=one_minus_power(self.config.beta_2, count),
            adapts=tf.constant(False),
            finite=finite,
        )
        decayed = {
            "weight_decay": tf.constant(self.config.weight_decay),
            "adapts": tf.constant(True),
        }
        return {
            (scale, is_decayed): shared._replace(
                learning_rate=rate * scale, **(decayed if is_decayed else {})
            )
            for scale, is_decayed in sorted(set(self.settings.values()))
        }

    def update_all(
        self,
        strategy: tf.distribute.Strategy,
        gradients: dict[str, tf.Tensor],
        rates: RatesBySettings,
    ) -> None:
        """Updates the variables of these gradients and the step, in cross-replica context."""
        for name, gradient in gradients.items():
            slots = tuple(self.slots[f"{name}/{kind}"] for kind in SLOTS[self.config.name])
            uses = (self.uses[f"{name}/uses"],) if self.uses else ()
            arguments = (gradient, rates[self.settings[name]], slots, uses)
            variable = self.variables_by_name[name]
            strategy.extended.update(variable, self.update_one, args=arguments, group=False)
        strategy.extended.update(self.step, lambda step: step.assign_add(1), group=False)
        if self.loss_scaling is not None:
            self.loss_scaling.update(strategy, next(iter(rates.values())).finite)

    def update_one(
        self,
        weight: tf.Variable,
        gradient: tf.Tensor,
        rates: Rates,
        slots: tuple[tf.Variable, ...],
        uses: tuple[tf.Variable, ...],
    ) -> None:
        """Updates one replica's copy of a variable; slots resolve to the copies beside it."""
        for own in uses:  # one, or none where every step uses every variable
            count = tf.cast(own.assign_add(1), tf.float32)
            rates = rates._replace(
                correction_1=one_minus_power(self.config.beta_1, count),
                correction_2=one_minus_power(self.config.beta_2, count),
            )
        owned = (weight, *slots)
        # Values in and values out: a compiled function that holds a resource of a second logical
        # device fails ("resource located in device CPU:1").
        values = tuple(variable.value() for variable in owned)
        updated = self.rule(rates, gradient, values)
        if self.loss_scaling is not None:
            pairs = zip(updated, values, strict=True)
            updated = tuple(tf.where(rates.finite, new, old) for new, old in pairs)
        for variable, value in zip(owned, updated, strict=True):
            variable.assign(value)


@functools.cache  # several seeds, one after the other, compile it once
def compiled_rule(config: OptimizerConfig) -> Callable[..., Any]:
    """The rule of an optimizer for one weight.

    XLA fuses the operations on a weight into one pass over memory: 0.11 s of CPU a step, not 0.29
    s, for 22.7 M weights in 105 variables, after 1 s for tracing and compiling each shape once. One
    function for all variables is no faster and compiles for 10 s. The norm stays outside: XLA sums
    without vectors.
    """
    rule = functools.partial(RULES[config.name], config)
    return tf.function(rule, jit_compile=True, autograph=False)


class LossScaling(tf.Module):
    """Dynamic loss scaling for float16 (Micikevicius et al. 2018, section 3.2).

    The scale is halved when a gradient overflows, and doubled after 2,000 steps without.
    """

    initial_scale = 2.0**15
    steps_to_double = 2000

    def __init__(self) -> None:
        super().__init__(name="loss_scaling")
        self.scale = tf.Variable(self.initial_scale, name="loss_scale", **COUNTER)
        self.good_steps = tf.Variable(0, name="good_steps", dtype=tf.int64, **COUNTER)

    def saved_variables(self) -> dict[str, tf.Variable]:
        """By the names they have in training checkpoints."""
        return {"loss_scale": self.scale, "good_steps": self.good_steps}

    def update(self, strategy: tf.distribute.Strategy, finite: tf.Tensor) -> None:
        """After each step, in cross-replica context; `finite` says whether it overflowed."""

        def change(scale: tf.Variable, good_steps: tf.Variable, finite: tf.Tensor) -> None:
            steps = tf.where(finite, good_steps + 1, 0)
            doubles = steps >= self.steps_to_double
            grown = tf.where(doubles, scale * 2.0, scale)
            scale.assign(tf.where(finite, grown, tf.maximum(scale / 2.0, 1.0)))
            good_steps.assign(tf.where(doubles, tf.zeros_like(steps), steps))

        strategy.extended.update(self.scale, change, args=(self.good_steps, finite), group=False)


def clip_scale(norm: tf.Tensor, clip_norm: float) -> tf.Tensor:
    """Factor that brings a gradient of this norm to at most `clip_norm`; 0 does not clip.

    The form of `tf.clip_by_global_norm`: a norm that is not finite makes the factor NaN, so that a
    broken gradient shows in the weights and the loss instead of passing as a step of 0.
    """
    if clip_norm == 0.0:
        return tf.constant(1.0)
    return clip_norm * tf.minimum(1.0 / norm, 1.0 / clip_norm) + (norm - norm)


def one_minus_power(base: float, exponent: tf.Tensor) -> tf.Tensor:
    """1 - base^exponent in float32; the difference itself would lose 4 digits for 0.999."""
    if base == 0.0:
        return tf.constant(1.0)
    return -tf.math.expm1(exponent * math.log(base))

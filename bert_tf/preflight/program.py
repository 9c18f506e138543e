"""A recipe's train step as one pure function, as a TPU runs it.

`tf.function` gives a graph that reads and writes variables; the TPU compiler's front end wants
their values as arguments and results where no TPU is attached. `as_values` replays the graph
operation by operation with values in the place of variables, under the same names, so that what the
compiler says of an operation can be traced to a line of the source.

This module knows the insides of TensorFlow 2.20, which `environment.py` pins.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import tensorflow as tf
from tensorflow.compiler.tf2xla.ops import gen_xla_ops
from tensorflow.python.framework import ops
from tensorflow.python.ops import control_flow_ops

from bert_tf import training
from bert_tf.distribution import Accelerator
from bert_tf.encoder import variables_by_name
from bert_tf.optimization import Optimizer, moving
from bert_tf.preflight.stand_in import Specs
from bert_tf.tasks.contract import Features, Task

# Types of TensorFlow without a public name.
FuncGraph: TypeAlias = Any
ConcreteFunction: TypeAlias = Any
Nested: TypeAlias = Any  # tensors in dicts, lists and tuples
Value: TypeAlias = Any  # a tensor, or the `Handle` of a variable


@dataclasses.dataclass(frozen=True)
class Program:
    """A step with nothing but tensors in and out; to be compiled, never run."""

    function: Any  # tf.function of (batch tensors, values of variables)
    specs: list[tf.TensorSpec]  # of its arguments
    aliases: list[tuple[int, int]]  # output and argument that may share memory: a variable, updated
    graph: tf.Graph  # the step as it was traced, whose operations know their lines


class Replica(tf.distribute.ReplicaContext):
    """One replica of several on a TPU: sums over replicas are operations of its program."""

    def __init__(self, replicas: int) -> None:
        super().__init__(tf.distribute.get_strategy(), replica_id_in_sync_group=0)
        self.replicas = replicas

    @property
    def num_replicas_in_sync(self) -> int:
        return self.replicas

    @property
    def replica_id_in_sync_group(self) -> tf.Tensor | int:
        return gen_xla_ops.xla_replica_id() if self.replicas > 1 else 0

    def all_reduce(self, reduce_op: object, value: Nested, options: object = None) -> Nested:
        """The sum of all replicas; nothing else is asked for."""
        assert reduce_op in (tf.distribute.ReduceOp.SUM, "SUM")
        if self.replicas == 1:
            return value
        group = tf.constant([list(range(self.replicas))])
        return tf.nest.map_structure(
            lambda each: tf.raw_ops.CrossReplicaSum(input=each, group_assignment=group), value
        )


def train_program(task: Task, specs: Specs, accelerator: Accelerator, replicas: int) -> Program:
    """The train step of one replica, whose share of the batch has these shapes."""
    run = task.run
    model = task.build_model(accelerator.layout)
    optimizer = Optimizer(
        run.optimizer,
        moving(run.optimizer, variables_by_name(model)),
        total_steps=run.train.steps or 1000,
        num_layers=task.config.num_hidden_layers,
        counts_uses=bool(run.tasks),
    )
    step = training.make_replica_step(run, accelerator, task, model, optimizer)
    return as_program(step, specs, replicas)


def predict_program(task: Task, specs: Specs, accelerator: Accelerator, replicas: int) -> Program:
    """The evaluation step of one replica."""
    model = task.build_model(accelerator.layout)
    return as_program(lambda batch: task.predict(model, batch), specs, replicas)


def as_program(step: Callable[[Features], Nested], specs: Specs, replicas: int) -> Program:
    """A step on one replica's batch as a program."""

    def in_replica(batch: Features) -> Nested:
        compiled = control_flow_ops.XLAControlFlowContext()  # as on a TPU: Keras asks for it
        compiled.Enter()
        try:
            with Replica(replicas):
                return step(batch)
        finally:
            compiled.Exit()

    concrete = tf.function(in_replica, autograph=False).get_concrete_function(dict(specs))
    pure, variables, updated = as_values(concrete)
    batch = [tf.TensorSpec(each.shape, each.dtype) for each in concrete.inputs]
    batch = batch[: len(concrete.inputs) - len(concrete.graph.captures)]
    values = [tf.TensorSpec(variable.shape, variable.dtype) for variable in variables]
    function = tf.function(pure, jit_compile=True, autograph=False)
    outputs = len(concrete.outputs)
    aliases = [
        (outputs + number, len(batch) + place) for number, place in enumerate(sorted(updated))
    ]
    return Program(function, batch + values, aliases, concrete.graph)


# ---------------------------------------------------------------------------- variables as values


def as_values(
    concrete: ConcreteFunction,
) -> tuple[Callable[..., list[tf.Tensor]], list[tf.Variable], set[int]]:
    """The function with the values of its variables behind its arguments and its results.

    Returns:
        The function of (arguments, values), which returns (results, new values of those variables
        that it writes); the variables; and the places among them of those that it writes.

    Raises:
        NotImplementedError: it does with a variable what no step of this package does.
    """
    graph = concrete.graph
    captured = list(graph.captures)  # (outside, inside)
    arguments = concrete.inputs[: len(concrete.inputs) - len(captured)]
    by_handle = {id(variable.handle): variable for variable in graph.variables}
    resources = [inside for outside, inside in captured if inside.dtype == tf.resource]
    variables = [by_handle[id(out)] for out, inside in captured if inside.dtype == tf.resource]
    # Nothing assigns inside of a function that the step calls.
    written = {op.inputs[0].name for op in graph.get_operations() if op.type in WRITES}
    updated = {place for place, handle in enumerate(resources) if handle.name in written}

    def pure(*tensors: tf.Tensor) -> list[tf.Tensor]:
        state = State(list(tensors[len(arguments) :]))
        known: dict[str, Value] = {
            inside.name: given
            for inside, given in zip(arguments, tensors[: len(arguments)], strict=True)
        }
        known |= {handle.name: Handle(place) for place, handle in enumerate(resources)}
        known |= {
            inside.name: tf.convert_to_tensor(tf.get_static_value(outside))
            for outside, inside in captured
            if inside.dtype != tf.resource
        }
        results = replay(graph, known, state, concrete.outputs)
        return [*results, *(state.values[place] for place in sorted(updated))]

    return pure, variables, updated


@dataclasses.dataclass(frozen=True)
class Handle:
    """Stands for a variable: its place in the state."""

    place: int


@dataclasses.dataclass
class State:
    """The values of all variables at one point of a replay."""

    values: list[tf.Tensor]


WRITES: dict[str, Callable[[tf.Tensor, tf.Tensor], tf.Tensor]] = {
    "AssignVariableOp": lambda before, value: value,
    "AssignAddVariableOp": tf.add,
    "AssignSubVariableOp": tf.subtract,
}


def replay(
    graph: FuncGraph, known: dict[str, Value], state: State, outputs: Sequence[tf.Tensor]
) -> list:
    """Repeats a graph in the one that is being traced; `known` has its inputs by name."""
    done: set[str] = set()

    def repeat(op: tf.Operation) -> None:
        if op.name in done or op.type in ("Placeholder", "NoOp"):
            return
        done.add(op.name)
        for tensor in op.inputs:
            # The gradient of a loop gives the loop more inputs, made by operations behind it.
            if tensor.name not in known:
                repeat(tensor.op)
        inputs = [known[tensor.name] for tensor in op.inputs]
        if any(isinstance(value, Handle) for value in inputs):
            results = on_variable(graph, op, inputs, state)
        else:
            results = repeated(graph, op, inputs)
        for tensor, result in zip(op.outputs, results, strict=True):
            known[tensor.name] = result

    for op in graph.get_operations():
        repeat(op)
    return [known[tensor.name] for tensor in outputs]


def repeated(graph: FuncGraph, op: tf.Operation, inputs: list[tf.Tensor]) -> list[tf.Tensor]:
    """The operation once more, with other inputs and the same name."""
    target = ops.get_default_graph()
    for value in op.node_def.attr.values():
        names = [value.func.name] if value.HasField("func") else []
        for name in [*names, *(each.name for each in value.list.func)]:
            if not target._is_function(name):
                target._add_function_recursive(graph._get_function(name))
    new = target._create_op_internal(
        op.type,
        inputs,
        [tensor.dtype for tensor in op.outputs],
        name=op.name,
        attrs=dict(op.node_def.attr),
        compute_device=False,
    )
    return list(new.outputs)


def on_variable(
    graph: FuncGraph, op: tf.Operation, inputs: list[Value], state: State
) -> list[Value]:
    """What an operation on variables does to their values."""
    if op.type in CALLS:
        return CALLS[op.type](graph, op, inputs, state)
    place = inputs[0].place
    if op.type == "Identity":
        return [inputs[0]]
    if op.type == "ReadVariableOp":
        return [state.values[place]]
    if op.type == "ResourceGather":
        gathered = tf.gather(state.values[place], inputs[1], batch_dims=op.get_attr("batch_dims"))
        return [gathered]
    if op.type == "VariableShape":
        return [tf.constant(state.values[place].shape.as_list(), op.outputs[0].dtype)]
    if op.type in WRITES:
        sign = {"AssignVariableOp": None, "AssignAddVariableOp": 1, "AssignSubVariableOp": -1}
        factor, value = sign[op.type], inputs[1]
        before = state.values[place]
        state.values[place] = (
            value if factor is None else before + tf.cast(factor, value.dtype) * value
        )
        return []
    raise NotImplementedError(f"{op.type} ({op.name}) of a variable cannot be made a value.")


def call(graph: FuncGraph, op: tf.Operation, inputs: list[Value], state: State) -> list[Value]:
    """A call of a function that reads variables: its operations instead."""
    inner = graph._get_function(op.get_attr("f").name).graph
    known = {tensor.name: value for tensor, value in zip(inner.inputs, inputs, strict=True)}
    return replay(inner, known, state, inner.outputs)


def loop(graph: FuncGraph, op: tf.Operation, inputs: list[Value], state: State) -> list[Value]:
    """A loop that reads variables and writes none: they become constants of the loop."""
    functions = {
        name: graph._get_function(op.get_attr(name).name).graph for name in ("cond", "body")
    }
    moving_places = [n for n, value in enumerate(inputs) if not isinstance(value, Handle)]

    def run(name: str, *values: tf.Tensor) -> list[Value]:
        inner = functions[name]
        given = dict(enumerate(inputs)) | dict(zip(moving_places, values, strict=True))
        known = {tensor.name: given[n] for n, tensor in enumerate(inner.inputs)}
        return replay(inner, known, State(list(state.values)), inner.outputs)

    results = tf.while_loop(
        lambda *values: run("cond", *values)[0],
        lambda *values: [run("body", *values)[n] for n in moving_places],
        [inputs[n] for n in moving_places],
    )
    found = dict(zip(moving_places, results, strict=True))
    return [found.get(n, value) for n, value in enumerate(inputs)]


CALLS: dict[str, Callable[..., list[Any]]] = {
    "PartitionedCall": call,
    "StatefulPartitionedCall": call,
    "StatelessWhile": loop,
    "While": loop,
}

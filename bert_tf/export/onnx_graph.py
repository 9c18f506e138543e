"""A BERT as operators of ONNX, one after the other in the order of `encoder.py`.

The graph is written, not traced: no control flow, nothing of training, and sizes of a batch stay
free. Operators are those of the standard (opset 20), which runtimes fuse by themselves.

Legend: N texts, S pieces, H hidden, A heads, D head size, F feed-forward, L layers, C classes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from bert_tf import kernels
from bert_tf.config import VERSION, BertConfig

OPSET = 20  # the first with Gelu
IR_VERSION = 9  # of the file; that of opset 20. Runtimes refuse files newer than themselves.
INPUTS = ("token_ids", "segment_ids", "mask")  # int64 [N, S]
FLOAT, INT32 = 1, 6  # numbers of types in ONNX
BATCH, LENGTH = "batch", "length"  # names of the free sizes

Operand = str | float | list[int]  # a tensor by name, or a constant


class Node(NamedTuple):
    """An operator with one output."""

    operator: str
    inputs: tuple[str, ...]
    output: str
    attributes: dict[str, Any]


class Output(NamedTuple):
    """What the graph answers."""

    name: str
    shape: tuple[str | int, ...]


class Encoded(NamedTuple):
    """What the encoder knows of a batch, as `encoder.EncoderOutput`."""

    sequence: str  # [N, S, H], or [N, 1, H] at [CLS]
    layers: list[str]  # L times [N, S, H]
    embeddings: str  # [N, S, H]


class BertGraph:
    """Operators and constants; each method adds what the layer of its name computes."""

    def __init__(self, config: BertConfig, weights: dict[str, np.ndarray]) -> None:
        self.config = config
        self.weights = weights  # by original name; used ones become constants of that name
        self.nodes: list[Node] = []
        self.constants: dict[str, np.ndarray] = {}

    def add(self, operator: str, *operands: Operand, output: str = "", **attributes: Any) -> str:
        """Adds an operator and returns the name of its output."""
        output = output or f"{operator}_{len(self.nodes)}"
        inputs = tuple(self.named(operand) for operand in operands)
        self.nodes.append(Node(operator, inputs, output, attributes))
        return output

    def named(self, operand: Operand) -> str:
        """The name of a tensor; numbers become constants, float32 [] or int64 [n]."""
        if isinstance(operand, str):
            return operand
        is_float = isinstance(operand, float)
        value = np.array(operand, np.float32 if is_float else np.int64)
        name = f"constant {operand}"
        self.constants[name] = value
        return name

    def weight(self, name: str) -> str:
        """A weight as a constant."""
        self.constants[name] = self.weights[name]
        return name

    def transposed(self, name: str) -> str:
        """The same, [out, in] as [in, out]."""
        self.constants[f"{name}/transposed"] = np.ascontiguousarray(self.weights[name].T)
        return f"{name}/transposed"

    # ------------------------------------------------------------------------------- the encoder

    def encode(self, cls_only: bool = False) -> Encoded:
        """The whole encoder; with `cls_only` the last layer is computed at the first position."""
        bias = self.attention_bias()  # [N, 1, 1, S]
        embeddings = x = self.embeddings()  # [N, S, H]
        layers = []
        for index in range(self.config.num_hidden_layers):
            at_cls = cls_only and index == self.config.num_hidden_layers - 1
            x = self.block(f"bert/encoder/layer_{index}", x, bias, at_cls)
            layers.append(x)
        return Encoded(x, layers, embeddings)

    def attention_bias(self) -> str:
        """0 for tokens and `MASKED_SCORE` for padding, [N, 1, 1, S]."""
        padding = self.add("Sub", 1.0, self.add("Cast", "mask", to=FLOAT))  # float32 [N, S]
        return self.add("Mul", self.add("Unsqueeze", padding, [1, 2]), kernels.MASKED_SCORE)

    def embeddings(self) -> str:
        """[N, S, H]."""
        name = "bert/embeddings"
        length = self.add("Shape", "token_ids", start=1, end=2)
        table = self.weight(f"{name}/position_embeddings")
        positions = self.add("Slice", table, [0], length, [0])  # [S, H]
        words = self.add("Gather", self.weight(f"{name}/word_embeddings"), "token_ids")
        segments = self.add("Gather", self.weight(f"{name}/token_type_embeddings"), "segment_ids")
        x = self.add("Add", self.add("Add", words, segments), positions)  # [N, S, H]
        return self.layer_norm(x, f"{name}/LayerNorm")

    def block(self, name: str, x: str, bias: str, at_cls: bool) -> str:
        """[N, S, H] to [N, S, H], or to [N, 1, H]."""
        asking = self.add("Slice", x, [0], [1], [1]) if at_cls else x
        attended = self.attention(f"{name}/attention/self", asking, x, bias)
        attended = self.linear(attended, f"{name}/attention/output/dense")
        asking = self.layer_norm(
            self.add("Add", attended, asking), f"{name}/attention/output/LayerNorm"
        )
        inner = self.activation(self.linear(asking, f"{name}/intermediate/dense"))  # [N, S, F]
        outer = self.linear(inner, f"{name}/output/dense")
        return self.layer_norm(self.add("Add", outer, asking), f"{name}/output/LayerNorm")

    def attention(self, name: str, asking: str, x: str, bias: str) -> str:
        """What `asking` [N, S or 1, H] gathers from `x` [N, S, H]: [N, S or 1, H]."""
        query = self.heads(asking, f"{name}/query", [0, 2, 1, 3])  # [N, A, S, D]
        key = self.heads(x, f"{name}/key", [0, 2, 3, 1])  # [N, A, D, S]
        value = self.heads(x, f"{name}/value", [0, 2, 1, 3])  # [N, A, S, D]
        query = self.add("Mul", query, self.config.head_size**-0.5)
        scores = self.add("Add", self.add("MatMul", query, key), bias)  # [N, A, S, S]
        attended = self.add("MatMul", self.add("Softmax", scores, axis=-1), value)
        rows = self.add("Transpose", attended, perm=[0, 2, 1, 3])  # [N, S, A, D]
        return self.add("Reshape", rows, [0, 0, self.config.hidden_size])

    def heads(self, x: str, name: str, order: list[int]) -> str:
        """A linear map of [N, S, H], cut into heads: [N, S, A, D] in another order."""
        shape = [0, 0, self.config.num_attention_heads, self.config.head_size]
        return self.add("Transpose", self.add("Reshape", self.linear(x, name), shape), perm=order)

    def linear(self, x: str, name: str) -> str:
        """[..., in] to [..., out]."""
        product = self.add("MatMul", x, self.weight(f"{name}/kernel"))
        return self.add("Add", product, self.weight(f"{name}/bias"))

    def layer_norm(self, x: str, name: str) -> str:
        """Over the last axis."""
        gamma, beta = self.weight(f"{name}/gamma"), self.weight(f"{name}/beta")
        epsilon = self.config.layer_norm_eps
        return self.add("LayerNormalization", x, gamma, beta, axis=-1, epsilon=epsilon)

    def activation(self, x: str) -> str:
        """One of `kernels.ACTIVATIONS`."""
        operators = {"gelu": "Gelu", "gelu_approximate": "Gelu", "relu": "Relu", "tanh": "Tanh"}
        form = {"approximate": "tanh"} if self.config.hidden_act == "gelu_approximate" else {}
        return self.add(operators[self.config.hidden_act], x, **form)

    # ---------------------------------------------------------------- what heads have in common

    def first(self, x: str) -> str:
        """The vectors of [CLS]: [N, S, H] to [N, H]."""
        return self.add("Squeeze", self.add("Slice", x, [0], [1], [1]), [1])

    def pool(self, x: str) -> str:
        """The pooler: [N, S, H] to [N, H]."""
        return self.add("Tanh", self.linear(self.first(x), "bert/pooler/dense"))

    def output_layer(self, x: str, prefix: str = "", output: str = "") -> str:
        """[..., H] to logits [..., C]."""
        product = self.add("MatMul", x, self.transposed(f"{prefix}output_weights"))
        return self.add("Add", product, self.weight(f"{prefix}output_bias"), output=output)

    def real(self) -> str:
        """1.0 for tokens and 0.0 for padding, [N, S, 1]."""
        return self.add("Unsqueeze", self.add("Cast", "mask", to=FLOAT), [2])

    def mean_of_tokens(self, x: str) -> str:
        """[N, S, H] to [N, H]; a text of padding alone has zeros."""
        real = self.real()
        total = self.add("ReduceSum", self.add("Mul", x, real), [1], keepdims=0)  # [N, H]
        count = self.add("ReduceSum", real, [1], keepdims=0)  # [N, 1]
        return self.add("Div", total, self.add("Max", count, 1.0))


def to_model(graph: BertGraph, outputs: list[Output]) -> Any:  # noqa: ANN401 - an onnx.ModelProto
    """The graph as a message of ONNX; raises ValueError where the `onnx` package is missing."""
    try:
        from onnx import TensorProto, helper, numpy_helper
    except ImportError:
        raise ValueError("ONNX needs the onnx package: pip install -e '.[onnx]'.") from None
    nodes = [
        helper.make_node(node.operator, node.inputs, [node.output], node.output, **node.attributes)
        for node in graph.nodes
    ]
    answers = [
        helper.make_tensor_value_info(output.name, TensorProto.FLOAT, output.shape)
        for output in outputs
    ]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, [BATCH, LENGTH]) for name in INPUTS
    ]
    constants = [numpy_helper.from_array(value, name) for name, value in graph.constants.items()]
    return helper.make_model(
        helper.make_graph(nodes, "bert", inputs, answers, constants),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="bert_tf",
        producer_version=VERSION,
    )

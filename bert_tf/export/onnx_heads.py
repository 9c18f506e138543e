"""The heads of the tasks as operators of ONNX: what `ids` of a SavedModel answers, in numbers.

Legend: N texts, S pieces, H hidden, C classes or tags.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from bert_tf import kernels
from bert_tf.embedding import SMALLEST_NORM
from bert_tf.export.onnx_graph import BATCH, INT32, LENGTH, BertGraph, Encoded, Output
from bert_tf.export.single_tasks import SingleTask
from bert_tf.tasks.classification import ClassificationTask
from bert_tf.tasks.feature_tagger import LSTM_LAYERS
from bert_tf.tasks.tagging import TaggingTask


def classification(graph: BertGraph, single: SingleTask) -> list[Output]:
    """`logits` and `probabilities` [N, C]; of a regression `score` [N] and `logits` [N, 1]."""
    task = single.opened.task
    assert isinstance(task, ClassificationTask)
    encoded = graph.encode(cls_only=True)
    pooled = graph.pool(encoded.sequence)  # [N, H]
    if single.shortcut:
        pooled = graph.add("Concat", pooled, graph.mean_of_tokens(encoded.embeddings), axis=-1)
    logits = graph.output_layer(pooled, output="logits")
    given = Output(logits, (BATCH, task.labels.num_outputs))
    if task.labels.kind == "regression":
        return [Output(graph.add("Squeeze", logits, [1], output="score"), (BATCH,)), given]
    form = {} if task.labels.kind == "multilabel" else {"axis": -1}
    operator = "Softmax" if form else "Sigmoid"
    probabilities = graph.add(operator, logits, output="probabilities", **form)
    return [given, Output(probabilities, given.shape)]


def tagging(graph: BertGraph, single: SingleTask) -> list[Output]:
    """`logits` and `probabilities` [N, S, C] of every piece; logits are 0 on padding."""
    task = single.opened.task
    assert isinstance(task, TaggingTask)
    encoded, prefix = graph.encode(), ""
    sequence = every_position(graph, single, encoded)
    if task.run.task.feature_layers:
        sequence, prefix = features(graph, encoded.layers[-task.run.task.feature_layers :])
    logits = graph.add("Mul", graph.output_layer(sequence, prefix), graph.real(), output="logits")
    probabilities = graph.add("Softmax", logits, axis=-1, output="probabilities")
    shape = (BATCH, LENGTH, len(task.tags.names))
    return [Output(logits, shape), Output(probabilities, shape)]


def features(graph: BertGraph, layers: list[str]) -> tuple[str, str]:
    """The BiLSTM on joined layers, [N, S, 2 H], and the prefix of the weights behind it."""
    lengths = graph.add("Cast", graph.add("ReduceSum", "mask", [1], keepdims=0), to=INT32)
    x = graph.add("Transpose", graph.add("Concat", *layers, axis=-1), perm=[1, 0, 2])  # [S, N, F]
    for index in range(LSTM_LAYERS):
        x = bidirectional_lstm(graph, x, lengths, f"tagger/lstm_{index}")  # [S, N, 2 H]
    return graph.add("Transpose", x, perm=[1, 0, 2]), "tagger/"


def bidirectional_lstm(graph: BertGraph, x: str, lengths: str, name: str) -> str:
    """[S, N, F] to [S, N, 2 H]; reads the first `lengths` int32 [N] positions alone."""
    size = graph.config.hidden_size
    weights = {
        f"{name}/{kind}": np.stack(
            [gates(graph.weights[f"{name}/{way}/{kind}"]) for way in ("forward", "backward")]
        )
        for kind in ("kernel", "recurrent_kernel", "bias")
    }  # [2, 4 H, F], [2, 4 H, H], [2, 4 H]
    # ONNX has a second bias, which Keras has not.
    weights[f"{name}/bias"] = np.pad(weights[f"{name}/bias"], [(0, 0), (0, 4 * size)])
    graph.constants |= weights
    states = graph.add("LSTM", x, *weights, lengths, hidden_size=size, direction="bidirectional")
    joined = graph.add("Transpose", states, perm=[0, 2, 1, 3])  # [S, N, 2, H]
    return graph.add("Reshape", joined, [0, 0, 2 * size])


def gates(weight: np.ndarray) -> np.ndarray:
    """Weights [..., 4 H] in the order input, forget, cell, output (Keras) to ONNX's [4 H, ...]."""
    to_input, forget, cell, output = np.split(weight, 4, axis=-1)
    return np.concatenate([to_input, output, forget, cell], axis=-1).T.copy()


def question_answering(graph: BertGraph, single: SingleTask) -> list[Output]:
    """`start_logits` and `end_logits` [N, S]; padding is far below all others."""
    sequence = every_position(graph, single, graph.encode())
    padding = graph.add("Mul", graph.add("Sub", 1.0, graph.real()), kernels.MASKED_SCORE)
    logits = graph.add("Add", graph.output_layer(sequence, "cls/squad/"), padding)  # [N, S, 2]
    outputs = []
    for column, name in enumerate(("start_logits", "end_logits")):
        one = graph.add("Slice", logits, [column], [column + 1], [2])  # [N, S, 1]
        outputs.append(Output(graph.add("Squeeze", one, [2], output=name), (BATCH, LENGTH)))
    return outputs


def multiple_choice(graph: BertGraph, single: SingleTask) -> list[Output]:
    """`scores` [N], a row for each choice."""
    del single
    logits = graph.output_layer(graph.pool(graph.encode(cls_only=True).sequence))  # [N, 1]
    return [Output(graph.add("Squeeze", logits, [1], output="scores"), (BATCH,))]


def dual_encoder(graph: BertGraph, single: SingleTask) -> list[Output]:
    """`embedding` [N, H]."""
    settings = single.opened.run.task
    sequence = graph.encode(cls_only=settings.pooling == "cls").sequence
    if settings.pooling == "cls":
        vectors = graph.first(sequence)
    elif settings.pooling == "mean":
        vectors = graph.mean_of_tokens(sequence)
    else:
        vectors = highest(graph, sequence)
    if settings.normalize:
        length = graph.add("ReduceL2", vectors, [1], keepdims=1)  # [N, 1]
        vectors = graph.add("Div", vectors, graph.add("Max", length, SMALLEST_NORM))
    graph.add("Identity", vectors, output="embedding")
    return [Output("embedding", (BATCH, graph.config.hidden_size))]


def highest(graph: BertGraph, sequence: str) -> str:
    """The maximum over tokens, [N, S, H] to [N, H]; a text of padding alone has zeros."""
    real = graph.real()
    lowest = float(np.finfo(np.float32).min)
    padding = graph.add("Mul", graph.add("Sub", 1.0, real), lowest)  # [N, S, 1]
    kept = graph.add("Add", graph.add("Mul", sequence, real), padding)
    any_real = graph.add("ReduceMax", real, [1], keepdims=0)  # [N, 1]
    return graph.add("Mul", graph.add("ReduceMax", kept, [1], keepdims=0), any_real)


def every_position(graph: BertGraph, single: SingleTask, encoded: Encoded) -> str:
    """What a head of every position reads, [N, S, H or 2 H]."""
    if not single.shortcut:
        return encoded.sequence
    return graph.add("Concat", encoded.sequence, encoded.embeddings, axis=-1)


HEADS: dict[str, Callable[[BertGraph, SingleTask], list[Output]]] = {
    "classification": classification,
    "dual_encoder": dual_encoder,
    "multiple_choice": multiple_choice,
    "question_answering": question_answering,
    "tagging": tagging,
}

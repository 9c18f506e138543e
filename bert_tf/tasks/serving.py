"""What the signatures of all tasks share: ids checked and padding told from tokens, in the graph.

Legend: N texts, S the longest of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from bert_tf.config import BertConfig
from bert_tf.tasks.contract import Signature, Task
from bert_tf.tokenization import PackedTokens, Tokenizer

TEXT_SIGNATURE = "serving_default"  # what TF Serving calls where a request names no signature
IDS_SIGNATURE = "ids"
IDS_INPUTS = ("token_ids", "segment_ids", "mask")
WARMUP_BATCH_SIZES = (1, 8)
WARMUP_LENGTHS = (16, 64, 128, 256, 512)  # tokens; those that the run allows, and its own maximum

Tensors = dict[str, tf.Tensor]
Request = tuple[str, dict[str, Any]]  # name of a signature, and its inputs by name


def strings_signature(
    names: Sequence[str],
    answer: Callable[[Sequence[tf.Tensor]], Tensors],
    lists: Sequence[str] = (),
) -> Signature:
    """Strings [N] with these names to what `answer` makes of them; `lists` of them are [N, C]."""
    shapes = {name: [None, None] if name in lists else [None] for name in names}
    specs = [tf.TensorSpec(shape, tf.string, name) for name, shape in shapes.items()]

    @tf.function(input_signature=specs, autograph=False)
    def serve_strings(*texts: tf.Tensor) -> Tensors:
        return answer(texts)

    return serve_strings.get_concrete_function()


def of_one_number(texts: Sequence[tf.Tensor], names: Sequence[str]) -> list[tf.Tensor]:
    """Strings [N] each, once they have been found to be of the same number."""
    message = f"{' and '.join(names)} differ in number."
    checks = [tf.debugging.assert_equal(tf.shape(t), tf.shape(texts[0]), message) for t in texts]
    # What comes next would else run beside the checks, and may fail first, in other words.
    with tf.control_dependencies(checks):
        return [tf.identity(text) for text in texts]


def ids_signature(task: Task, answer: Callable[[Tensors], Tensors]) -> Signature:
    """`IDS_INPUTS` int32 [N, S], checked and without padding, to what `answer` makes of them."""

    @tf.function(
        input_signature=[tf.TensorSpec([None, None], tf.int32, name) for name in IDS_INPUTS],
        autograph=False,
    )
    def serve_ids(token_ids: tf.Tensor, segment_ids: tf.Tensor, mask: tf.Tensor) -> Tensors:
        with tf.control_dependencies(id_checks(token_ids, segment_ids, mask, task.config)):
            token_ids = tf.identity(token_ids)
        features = {
            "token_ids": at_least_one_column(token_ids),
            "segment_ids": at_least_one_column(segment_ids),
            "mask": at_least_one_column(own_mask(token_ids, mask, task.tokenizer.cls_id)),
        }
        return answer(features)

    return serve_ids.get_concrete_function()


def padded(packed: PackedTokens, pad_id: int) -> Tensors:
    """Rows of different lengths to `IDS_INPUTS` int32 [N, S]."""
    grids = {
        "token_ids": packed.token_ids.to_tensor(pad_id),
        "segment_ids": packed.segment_ids.to_tensor(),
        "mask": tf.ones_like(packed.token_ids).to_tensor(),
    }
    return {name: at_least_one_column(grid) for name, grid in grids.items()}


def at_least_one_column(grid: tf.Tensor) -> tf.Tensor:
    """[N, S, ...] to [N, max(S, 1), ...]: no texts have no columns, but heads read the first."""
    missing = tf.maximum(1 - tf.shape(grid)[1], 0)
    return tf.pad(grid, [[0, 0], [0, missing]] + [[0, 0]] * (grid.shape.rank - 2))


def id_checks(
    token_ids: tf.Tensor, segment_ids: tf.Tensor, mask: tf.Tensor, config: BertConfig
) -> list[tf.Operation]:
    """What a client can get wrong, as assertions: [N, S] each.

    Without them a GPU answers out-of-range ids and positions with zeros instead of an error.
    """
    shape = tf.shape(token_ids)
    limit = config.max_position_embeddings
    positions = f"token_ids are longer than the {limit} positions of this model; cut them."
    same_shape = "token_ids, segment_ids and mask must have the same shape."
    checks = [
        tf.debugging.assert_less_equal(shape[1], limit, positions),
        tf.debugging.assert_equal(tf.shape(segment_ids), shape, same_shape),
        tf.debugging.assert_equal(tf.shape(mask), shape, same_shape),
        tf.debugging.assert_equal(
            tf.logical_or(shape[0] == 0, shape[1] > 0), True, "token_ids have no columns."
        ),
    ]
    limits = (
        ("token_ids", token_ids, config.vocab_size),
        ("segment_ids", segment_ids, config.type_vocab_size),
        ("mask", mask, 2),
    )
    for name, values, size in limits:
        message = f"{name} must be from 0 to {size - 1} for this model."
        checks.append(tf.debugging.assert_non_negative(values, message))
        checks.append(tf.debugging.assert_less(values, size, message))
    return checks


def own_mask(token_ids: tf.Tensor, mask: tf.Tensor, cls_id: int) -> tf.Tensor:
    """The mask without what TF Serving padded.

    With `pad_variable_length_inputs` TF Serving joins requests of unequal length and pads each
    tensor with its *first element*, not with 0 (its batching_util.h): `token_ids` end in a run of
    [CLS], while `mask` goes on with 1 and says that they are real. No input of BERT ends in [CLS],
    so that a run of [CLS] up to the end of a row, but for its first position, is padding.

    Args:
        token_ids: int32 [N, S].
        mask: int32 [N, S], 1 = real token, as the client or TF Serving says.
        cls_id: id of [CLS].

    Returns:
        int32 [N, S].
    """
    is_other = tf.cast(token_ids != cls_id, tf.int32)
    others_ahead = tf.cumsum(is_other, axis=1, reverse=True)  # [N, S] at or after each position
    is_first = tf.range(tf.shape(token_ids)[1]) == 0  # [S]
    return tf.where((others_ahead > 0) | is_first, mask, 0)


def warmup_requests(
    tokenizer: Tokenizer, text_inputs: Sequence[str], longest: int
) -> Iterator[Request]:
    """What TF Serving replays before it takes traffic, for strings and for ids.

    Without it the first clients wait until memory and kernels for their sizes are set up.

    Args:
        tokenizer: of the model.
        text_inputs: names of the string inputs; each gets its share of the tokens.
        longest: tokens of the longest row, special pieces included.
    """
    for batch_size in WARMUP_BATCH_SIZES:
        for length in sorted({*WARMUP_LENGTHS, longest}):
            if length > longest:
                break
            # A full stop is one token, known or [UNK], and so is an ellipsis, which is no ASCII and
            # takes the tokenizer's longer way.
            words = (length - 1) // len(text_inputs) - 1
            texts = ["." * words] * (batch_size - 1) + ["…" * words]
            yield TEXT_SIGNATURE, dict.fromkeys(text_inputs, texts)
            row = [tokenizer.cls_id] + [tokenizer.unk_id] * (length - 2) + [tokenizer.sep_id]
            token_ids = np.array([row] * batch_size, np.int32)  # [N, S]
            segment_ids, mask = np.zeros_like(token_ids), np.ones_like(token_ids)
            yield IDS_SIGNATURE, dict(zip(IDS_INPUTS, (token_ids, segment_ids, mask), strict=True))

"""What a dual encoder answers, to files and to clients.

`predictions.jsonl` has a line for each pair: `{"cosine": 0.83}`.

`embed` and `serving_default` are one function: strings `text` [N], cut at `data.max_seq_length`
pieces, to `embedding` float32 [N, H], pooled as `task.pooling` says, of length 1 with
`task.normalize`. `ids` gives the same for token ids. A checkpoint that nobody fine-tuned is
exported as a dual encoder as well (`restore.open_checkpoint`).

Legend: N texts, S the longest of the batch, H hidden.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from bert_tf.data import batches
from bert_tf.tasks import serving
from bert_tf.tasks.contract import PREDICTIONS_FILE, IdsAnswer, Signature
from bert_tf.tasks.dual_encoder import DualEncoderTask
from bert_tf.tasks.serving import Tensors

EMBED_SIGNATURE = "embed"
DIGITS = 6  # of cosines in files


@dataclasses.dataclass(frozen=True)
class DualEncoderAnswers:
    """The answers of a dual encoder; see `contract.Answers`."""

    task: DualEncoderTask

    def examples(self, split: str) -> batches.Examples:
        """The tokenized pairs of a split, whatever scores it has."""
        return self.task.tokenize(dataclasses.replace(self.task.texts(split), labels=None))

    def files(
        self, split: str, examples: batches.Examples, outputs: Mapping[str, np.ndarray]
    ) -> dict[str, list[str]]:
        """`predictions.jsonl`."""
        del split, examples
        cosines = outputs["cosine"].tolist()
        return {PREDICTIONS_FILE: [json.dumps({"cosine": round(c, DIGITS)}) for c in cosines]}

    def card(self) -> dict[str, Any]:
        """What the vectors are."""
        settings = self.task.run.task
        return {
            "embedding": {
                "size": self.task.config.hidden_size,
                "pooling": settings.pooling,
                "normalized": settings.normalize,
            }
        }

    def signatures(self, model: tf.Module) -> dict[str, Signature]:
        """`embed`, the same as `serving_default` (strings), and `ids`."""
        tokenizer, longest = self.task.tokenizer, self.task.run.data.max_seq_length
        answer = self.ids_answers(model)[serving.IDS_SIGNATURE]

        def features_of(text: tf.Tensor) -> Tensors:
            packed = tokenizer.pack(tokenizer(text), None, longest)
            return serving.padded(packed, tokenizer.pad_id)

        embed = serving.strings_signature(("text",), lambda texts: answer(features_of(texts[0])))
        return {
            serving.TEXT_SIGNATURE: embed,
            EMBED_SIGNATURE: embed,
            serving.IDS_SIGNATURE: serving.ids_signature(self.task, answer),
        }

    def ids_answers(self, model: tf.Module) -> dict[str, IdsAnswer]:
        """What `ids` does."""
        return {serving.IDS_SIGNATURE: lambda features: {"embedding": model(features)}}

    def warmup_requests(self) -> Iterator[serving.Request]:
        """Requests of the usual sizes."""
        longest = self.task.run.data.max_seq_length
        for name, inputs in serving.warmup_requests(self.task.tokenizer, ("text",), longest):
            yield name, inputs
            if name == serving.TEXT_SIGNATURE:
                yield EMBED_SIGNATURE, inputs

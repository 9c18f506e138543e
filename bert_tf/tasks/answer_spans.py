"""Answers as spans: from two scores for each piece to the likeliest spans of a text.

A span may be chosen where it lies in the text, has at most so many pieces, and begins with a piece
that belongs to its window (see `data/question_windows.py`). The original release looks at pairs of
the 20 best first and 20 best last pieces; here all pairs are looked at, which is never worse.

Legend: B windows of a batch, S pieces of a window, A pieces of the longest answer, K spans.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from bert_tf.data.question_windows import CLS_POSITION, WindowExamples

IMPOSSIBLE = -1e9  # the score of what is no span
NO_ANSWER = -1  # position of an answer that is not in the text: text[-1:-1] is ""

Tensors = dict[str, tf.Tensor]


def best_spans(
    logits: tf.Tensor, batch: Mapping[str, tf.Tensor], longest: int, count: int
) -> Tensors:
    """The likeliest spans of each window.

    Args:
        logits: float32 [B, S, 2]: how well a piece begins, and how well it ends, an answer.
        batch: `mask` int [B, S] (1 = real token), `starts_from` and `starts_to` int32 [B].
        longest: A.
        count: K.

    Returns:
        `span_start`, `span_end` int32 [B, K], positions of the first and last piece;
        `start_logit`, `end_logit` and their sum `span_score` float32 [B, K], the highest first and
        IMPOSSIBLE where there are fewer spans; `span_mass` float32 [B], the logarithm of the sum of
        exp(score) over all spans; and `null_logits` float32 [B, 2], of [CLS]: of no answer.
    """
    start, end = tf.unstack(logits, axis=-1)  # [B, S] each
    positions = tf.range(tf.shape(start)[1])  # [S]
    last = tf.reduce_sum(tf.cast(batch["mask"], tf.int32), axis=1) - 2  # [B]; before [SEP]
    may_start = (positions >= batch["starts_from"][:, tf.newaxis]) & (
        positions < batch["starts_to"][:, tf.newaxis]
    )  # [B, S]
    # Ends that begin at each piece: [S, A], beyond the window where that is too short.
    ends = positions[:, tf.newaxis] + tf.range(longest)
    end_logits = tf.gather(tf.pad(end, [[0, 0], [0, longest - 1]]), ends, axis=1)  # [B, S, A]
    allowed = may_start[:, :, tf.newaxis] & (ends <= last[:, tf.newaxis, tf.newaxis])
    scores = tf.where(allowed, start[:, :, tf.newaxis] + end_logits, IMPOSSIBLE)  # [B, S, A]
    flat = tf.reshape(scores, [tf.shape(start)[0], tf.size(ends)])  # [B, S * A]
    # A short window has fewer spans than were asked for.
    flat = tf.pad(flat, [[0, 0], [0, count]], constant_values=IMPOSSIBLE)
    best, place = tf.math.top_k(flat, k=count)  # [B, K]
    span_start = tf.minimum(place // longest, tf.shape(start)[1] - 1)
    start_logit = tf.gather(start, span_start, batch_dims=1)
    return {
        "span_start": span_start,
        "span_end": span_start + place % longest,
        "start_logit": start_logit,
        "end_logit": best - start_logit,
        "span_score": best,
        "span_mass": tf.reduce_logsumexp(flat, axis=1),
        "null_logits": logits[:, CLS_POSITION],
    }


@dataclasses.dataclass(frozen=True)
class Span:
    """A piece of a text, `context[start:end]`, or "" for no answer."""

    text: str
    start: int  # code points; NO_ANSWER where there is none
    end: int
    start_logit: float
    end_logit: float
    probability: float  # among all spans of all windows, and no answer where the task knows that

    def to_dict(self) -> dict[str, Any]:
        """For JSON, with the original release's keys first."""
        keys = ("text", "probability", "start_logit", "end_logit", "start", "end")
        return {key: getattr(self, key) for key in keys}


@dataclasses.dataclass(frozen=True)
class Found:
    """What was found in one text."""

    spans: tuple[Span, ...]  # the likeliest first, all of different text; may be empty
    null: Span  # no answer
    null_odds: float  # log-odds of no answer against the likeliest span

    @property
    def best_text(self) -> str:
        """The likeliest answer, whether there is one or not."""
        return self.spans[0].text if self.spans else ""

    def decided(self, threshold: float | None) -> Span:
        """The answer: none above the threshold on `null_odds` (None: whenever there is a span)."""
        if not self.spans or (threshold is not None and self.null_odds > threshold):
            return self.null
        return self.spans[0]


def find_answers(
    outputs: Mapping[str, np.ndarray], examples: WindowExamples, count: int, no_answer: bool
) -> Iterator[Found]:
    """Joins the windows of each question: outputs of `best_spans` for all examples, [W, ...].

    Args:
        outputs: by name.
        examples: what they are outputs of.
        count: spans to keep for each question, at most.
        no_answer: whether no answer takes its share of the probability.
    """
    bounds = np.searchsorted(examples.owner, np.arange(len(examples.questions) + 1))
    for question in range(len(examples.questions)):
        windows = slice(bounds[question], bounds[question + 1])
        mine = {name: values[windows] for name, values in outputs.items()}
        yield answer_of(mine, examples, question, windows, count, no_answer)


def answer_of(
    mine: Mapping[str, np.ndarray],
    examples: WindowExamples,
    question: int,
    windows: slice,
    count: int,
    no_answer: bool,
) -> Found:
    """The answer from the outputs of one question's windows; see `find_answers`."""
    # Of the window that finds an answer likeliest.
    null_start, null_end = min(mine["null_logits"].tolist(), key=sum)
    null_score = null_start + null_end
    mass = float(np.logaddexp.reduce(mine["span_mass"].astype(np.float64)))
    mass = float(np.logaddexp(mass, null_score)) if no_answer else mass
    here = slice(*examples.piece_splits[question : question + 2])
    context = examples.questions.rows[question].context
    spans: dict[str, Span] = {}
    scores = mine["span_score"]  # [windows, K]
    for place in np.argsort(-scores, axis=None, kind="stable"):
        window, column = np.unravel_index(place, scores.shape)
        score = float(scores[window, column])
        if score <= IMPOSSIBLE / 2 or len(spans) == count:
            break
        shift = examples.piece_shift[windows][window]
        start = int(examples.char_start[here][mine["span_start"][window, column] + shift])
        end = int(examples.char_end[here][mine["span_end"][window, column] + shift])
        span = Span(
            context[start:end],
            start,
            end,
            float(mine["start_logit"][window, column]),
            float(mine["end_logit"][window, column]),
            float(np.exp(score - mass)),
        )
        spans.setdefault(span.text, span)
    best = scores.max(initial=IMPOSSIBLE)
    chance = float(np.exp(null_score - mass)) if no_answer else 0.0
    nothing = Span("", NO_ANSWER, NO_ANSWER, null_start, null_end, chance)
    return Found(tuple(spans.values()), nothing, null_score - float(best))

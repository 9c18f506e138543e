"""Which text belongs to which: in-batch negatives, over all replicas.

The softmax loss of Henderson et al. 2017, "Efficient natural language response suggestion for Smart
Reply", section 4.4, with scaled cosines, as sentence-transformers' MultipleNegativesRankingLoss.
Legend: B pairs of a replica, G of the global batch, K texts of a pair (3 with a hard negative),
H hidden, X candidates (G, or 2 G with hard negatives), E examples, M rows of them.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from bert_tf import embedding

METRICS = ("mean_reciprocal_rank", "recall_at_1")
NO_CANDIDATE = -1e9  # score of what may not be chosen
ROWS_AT_ONCE = 1024  # of the matrix of all scores that is measured


def loss_and_hits(
    vectors: tf.Tensor, text_ids: tf.Tensor, weight: tf.Tensor, scale: float
) -> tf.Tensor:
    """Loss and hits summed over this replica's pairs, float32 [2]; the gradient is of all pairs.

    Candidates are the partners, and the hard negatives, of the global batch. Each replica computes
    the losses of all pairs with its own vectors as variables and those of the others as constants.
    The sum of the replicas' gradients is then that of the whole batch, also for a vector that is a
    negative on another replica, and no gradient has to travel.

    Args:
        vectors: float32 [B, K, H]: anchor, partner, and a hard negative where K is 3.
        text_ids: int32 [B, K], equal where texts are.
        weight: float32 [B], 0 on rows that are no pair: these are no candidates either.
        scale: of the cosines.
    """
    vectors = embedding.normalized(vectors)
    size = vectors.shape[-1]
    every = gather_replicas(vectors)  # [G, K, H]
    ids, weights = gather_replicas(text_ids), gather_replicas(weight)  # [G, K], [G]
    candidates = tf.reshape(tf.transpose(every[:, 1:], [1, 0, 2]), [-1, size])  # [X, H]
    scores = scale * tf.matmul(every[:, 0], candidates, transpose_b=True)  # [G, X]
    scores = tf.where(is_candidate(ids, weights), scores, NO_CANDIDATE)
    own = tf.linalg.diag_part(scores[:, : tf.shape(scores)[0]])  # [G]
    losses = (tf.reduce_logsumexp(scores, axis=-1) - own) * weights
    hits = tf.cast(own >= tf.reduce_max(scores, axis=-1), tf.float32) * weights
    mine = own_rows(tf.shape(weight)[0], tf.shape(weights)[0])  # [G]
    terms = tf.stack([tf.reduce_sum(losses), tf.reduce_sum(hits)])
    my_terms = tf.stack([tf.reduce_sum(losses * mine), tf.reduce_sum(hits * mine)])
    return terms + tf.stop_gradient(my_terms - terms)


def is_candidate(text_ids: tf.Tensor, weight: tf.Tensor) -> tf.Tensor:
    """Which texts each anchor chooses from: ids int32 [G, K], weight [G] to bool [G, X].

    Not those of padding rows, and not what is right but counts as wrong: the anchor itself, and
    any text that is a partner of an equal anchor somewhere in the batch, but for the row's own.
    """
    anchor, partner = text_ids[:, 0, tf.newaxis], text_ids[:, 1, tf.newaxis]  # [G, 1]
    candidate = tf.reshape(tf.transpose(text_ids[:, 1:]), [1, -1])  # [1, X]
    same_anchor = tf.cast(anchor == text_ids[tf.newaxis, :, 0], tf.float32)  # [G, G]
    is_partner = tf.cast(partner == candidate, tf.float32)  # [G, X]
    is_right = tf.matmul(same_anchor, is_partner) > 0.0  # [G, X]
    repeats = tf.shape(text_ids)[1] - 1
    is_real = tf.tile(weight[tf.newaxis] > 0.0, [1, repeats])  # [1, X]
    allowed = is_real & (candidate != anchor) & ~is_right
    # Its own partner; for a row of padding so that its loss is a number, which has weight 0.
    own = tf.eye(tf.shape(allowed)[0], tf.shape(allowed)[1], dtype=tf.bool)
    return allowed | own


def gather_replicas(values: tf.Tensor) -> tf.Tensor:
    """[B, ...] of every replica to [G, ...]; only this replica's rows have gradients."""
    context = tf.distribute.get_replica_context()
    replicas = context.num_replicas_in_sync
    if replicas == 1:
        return values
    constants = tf.stop_gradient(values)
    place = tf.one_hot(context.replica_id_in_sync_group, replicas, dtype=values.dtype)
    place = tf.reshape(place, [replicas] + [1] * values.shape.rank)  # [replicas, 1, ...]
    total = tf.distribute.ReduceOp.SUM
    gathered = context.all_reduce(total, place * constants)  # [replicas, B, ...]
    gathered += place * (values - constants)  # 0, with a gradient
    return tf.reshape(gathered, [-1, *values.shape[1:]])


def own_rows(count: tf.Tensor, every: tf.Tensor) -> tf.Tensor:
    """1 at the `count` rows of this replica among `every` one, float32 [G]."""
    replica = tf.cast(tf.distribute.get_replica_context().replica_id_in_sync_group, tf.int32)
    return tf.cast(tf.range(every) // count == replica, tf.float32)


def measure(vectors: np.ndarray, text_ids: np.ndarray, scale: float) -> dict[str, float]:
    """How high the partner of each anchor ranks among all partners: `METRICS`, and the mean loss.

    Equal scores count against the partner, so that equal vectors for all texts are no merit.

    Args:
        vectors: float32 [E, 2, H] of length 1.
        text_ids: int32 [E, 2 or 3], equal where texts are.
        scale: of the cosines.
    """
    partners = several_partners(text_ids)
    ranks, losses = [], []
    for first in range(0, len(text_ids), ROWS_AT_ONCE):
        rows = np.arange(first, min(first + ROWS_AT_ONCE, len(text_ids)))  # [M]
        scores = (vectors[rows, 0] @ vectors[:, 1].T).astype(np.float64)  # [M, E]
        above = scores - scores[np.arange(len(rows)), rows][:, np.newaxis]  # [M, E]
        anchor, partner = text_ids[rows, :1], text_ids[rows, 1:2]  # [M, 1]
        is_wrong = (text_ids[:, 1] != partner) & (text_ids[:, 1] != anchor)  # [M, E]
        for row, text_id in enumerate(anchor[:, 0]):
            if text_id in partners:
                is_wrong[row] &= ~np.isin(text_ids[:, 1], partners[text_id])
        ranks.append(1 + ((above >= 0.0) & is_wrong).sum(axis=1))
        others = np.logaddexp.reduce(np.where(is_wrong, scale * above, -np.inf), axis=1)
        losses.append(np.logaddexp(0.0, others))
    rank = np.concatenate(ranks)
    return {
        "mean_reciprocal_rank": float((1.0 / rank).mean()),
        "recall_at_1": float((rank == 1).mean()),
        "loss": float(np.concatenate(losses).mean()),
    }


def several_partners(text_ids: np.ndarray) -> dict[int, np.ndarray]:
    """The partners of each anchor that has more than one: ids [E, K] to ids by the anchor's."""
    pairs = np.unique(text_ids[:, :2], axis=0)
    anchors, firsts, counts = np.unique(pairs[:, 0], return_index=True, return_counts=True)
    several = zip(anchors, firsts, counts, strict=True)
    return {anchor: pairs[first : first + n, 1] for anchor, first, n in several if n > 1}

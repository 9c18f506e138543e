"""Batches made elsewhere: one process of tf.data service for all that train.

Without it every process makes each global batch and keeps its own rows. With it
(`scripts/data_service.py`) batches are made once, and each process reads its rows of the same step:
a coordinated read, in which all have the same width. There is one maker on purpose: with several,
coordinated reads take turns among them, and no longer follow the plan's order, which makes a run
that stops and goes on see what it would have seen.
"""

from __future__ import annotations

import re
import time

import tensorflow as tf

from bert_tf.distribution import Accelerator

ADDRESS = re.compile(r"grpc://[^/:]+:\d+")


def from_service(
    batches: tf.data.Dataset, accelerator: Accelerator, service: str
) -> tf.distribute.DistributedDataset:
    """Global batches [B, ...], made by the service and cut among the replicas.

    Raises:
        ValueError: the address is none.
    """
    if not ADDRESS.fullmatch(service):
        raise ValueError(
            f"config.data.service={service!r} is no address; write grpc://HOST:PORT of "
            "scripts/data_service.py."
        )
    replicas, processes = accelerator.replicas, accelerator.workers
    # A name of its own: under an old one the service would go on where that run stopped.
    name = f"batches-{accelerator.numbers_of_workers(time.time_ns())[0]}"

    @tf.autograph.experimental.do_not_convert
    def cut(batch: dict[str, tf.Tensor]) -> tf.data.Dataset:
        """The rows of each replica, one after the other in the order in which they are read.

        In one round every process reads once; it needs as many rounds a step as it has replicas.
        """

        def rows(values: tf.Tensor) -> tf.Tensor:
            size = values.shape[0] // replicas
            of_replica = tf.reshape(
                values,
                tf.concat([[processes, replicas // processes, size], tf.shape(values)[1:]], axis=0),
            )
            order = [1, 0, *range(2, len(values.shape) + 2)]
            in_turn = tf.transpose(of_replica, order)  # [replicas of a process, processes, ...]
            merged = tf.reshape(
                in_turn, tf.concat([[replicas, size], tf.shape(values)[1:]], axis=0)
            )
            return tf.ensure_shape(merged, [replicas, size, *values.shape[1:]])

        return tf.data.Dataset.from_tensor_slices({name: rows(v) for name, v in batch.items()})

    parts = batches.flat_map(cut).repeat()

    def pipeline(context: tf.distribute.InputContext) -> tf.data.Dataset:
        return parts.apply(
            tf.data.experimental.service.distribute(
                processing_mode=tf.data.experimental.service.ShardingPolicy.OFF,
                service=service,
                job_name=name,
                consumer_index=context.input_pipeline_id,
                num_consumers=context.num_input_pipelines,
            )
        )

    return accelerator.strategy.distribute_datasets_from_function(pipeline)

"""Creates the files of pre-training instances with Apache Beam, for corpora that outgrow a machine.

The shards are the elements. Each worker reads the text of its shards and writes their files itself,
by `creation.create_shard`, on storage that all workers see (gs://, or a shared disk). So the bytes
are those of `create_pretraining_data`, and either form goes on where the other one was stopped.

Only sums come back from the workers, as Beam's counters. A mistake in the text is no failure of the
pipeline, which would try again and then bury the message in stack traces: it is left in a file
beside the output, and raised here once the other shards are done.
"""

from __future__ import annotations

import contextlib
import io
import shlex
import uuid
from types import ModuleType
from typing import TYPE_CHECKING

import tensorflow as tf

from bert_tf.data import creation
from bert_tf.data.corpus import Corpus
from bert_tf.data.creation import Amount, CreationConfig

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions
    from apache_beam.runners.runner import PipelineResult

QUIET = (
    "--default_sdk_harness_log_level=WARNING"  # the workers; an option of the user's comes after
)
ANY_SHARD = "-?????-of-?????"


def create_with_beam(config: CreationConfig, runner: str, options: str) -> Amount:
    """Makes those shards that are not there yet.

    Args:
        config: what to make.
        runner: of Beam, such as DirectRunner or DataflowRunner.
        options: of the pipeline, as on a command line: "--direct_num_workers=2".

    Raises:
        ValueError: as `create_pretraining_data`; or Beam is missing, or an option is wrong.
    """
    beam = import_beam()
    pipeline = beam.Pipeline(options=parse_options(beam, runner, options))
    corpus, shards = creation.missing_shards(config)
    if not shards:
        return Amount()
    remove(f"{config.name}{ANY_SHARD}.error")  # of a run that was killed
    (  # the names are for the page on which a runner shows its progress
        pipeline
        | "Shards" >> beam.Create(shards)
        | "Spread" >> beam.Reshuffle()
        | "Make" >> beam.Map(create_and_count, config, corpus)
    )
    result = pipeline.run()
    result.wait_until_finish()
    raise_first_error(config)
    folder, slash, name = config.name.rpartition("/")
    remove(f"{folder}{slash}.{name}{ANY_SHARD}.*.tmp")  # of workers that were killed
    return counted(result)


def import_beam() -> ModuleType:
    """`apache_beam`; raises ValueError where it is not installed."""
    try:
        import apache_beam
    except ImportError:
        raise ValueError(
            "--runner needs Apache Beam, here and on the workers: pip install 'bert_tf[beam]' "
            "(or pip install apache-beam)."
        ) from None
    return apache_beam


def parse_options(beam: ModuleType, runner: str, options: str) -> PipelineOptions:
    """Options; raises ValueError where Beam would print its usage and exit."""
    parsed = beam.pipeline.PipelineOptions([f"--runner={runner}", QUIET, *shlex.split(options)])
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            parsed.get_all_options()
    except SystemExit:
        reason = printed.getvalue().strip().rpartition("error: ")[2]
        raise ValueError(f"--pipeline_options={options!r}: {reason}.") from None
    return parsed


# --------------------------------------------------------------------------------------- a worker


def create_and_count(shard: int, config: CreationConfig, corpus: Corpus) -> None:
    """Makes a shard, unless another try already did; leaves a file with the message of an error."""
    path = config.shard_path(shard, corpus.num_shards)
    if tf.io.gfile.exists(path):
        return
    # A runner may start a second try beside one that it believes dead.
    attempt = f".{uuid.uuid4().hex}"
    try:
        amount = creation.create_shard(config, corpus, shard, attempt)
    except ValueError as error:
        with tf.io.gfile.GFile(f"{path.removesuffix(config.ending)}.error", "w") as file:
            file.write(str(error))
        return
    counter = import_beam().metrics.Metrics.counter
    for name, value in amount._asdict().items():
        counter("bert_tf", name).inc(value)


# --------------------------------------------------------------------------------- what came of it


def counted(result: PipelineResult) -> Amount:
    """The sums of the workers' counters."""
    counters = result.metrics().query()["counters"]
    values = {counter.key.metric.name: counter.result for counter in counters}
    return Amount(*(values.get(name, 0) for name in Amount._fields))


def raise_first_error(config: CreationConfig) -> None:
    """Raises ValueError with what the workers left, if anything; the message of the first shard."""
    pattern = f"{config.name}{ANY_SHARD}.error"
    paths = sorted(tf.io.gfile.glob(pattern))
    if not paths:
        return
    with tf.io.gfile.GFile(paths[0]) as file:
        message = file.read()
    remove(pattern)
    others = f" ({len(paths) - 1} more shards could not be made.)" if len(paths) > 1 else ""
    raise ValueError(message + others)


def remove(pattern: str) -> None:
    """Removes files."""
    for path in tf.io.gfile.glob(pattern):
        tf.io.gfile.remove(path)

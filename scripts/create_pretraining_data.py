r"""Makes pre-training instances from raw text, in the files of the original release.

    python scripts/create_pretraining_data.py --input_file='text/*.txt' --vocab_file=vocab.txt \
        --output_file=data/pretraining.tfrecord --dupe_factor=5

writes data/pretraining-00000-of-00012.tfrecord and so on, on all cores. When it is stopped, the
same command goes on with the shards that are missing. The flags are those of the original
create_pretraining_data.py, and so are their defaults; those from --prose on are new.

    python scripts/create_pretraining_data.py --input_file='text/*.txt' --vocab_file=vocab.txt \
        --output_file=data/pretraining --form=tokens

writes data/pretraining-00000-of-00012.tokens.npz and so on: tokens alone, of which training makes
new pairs and masks in every epoch. Flags of instances mean nothing to it: they are settings of
config.task and config.data there.

The same with Apache Beam, on many machines (extra `beam`), or on this one:

    python scripts/create_pretraining_data.py ... --runner=DirectRunner \
        --pipeline_options='--direct_num_workers=2 --direct_running_mode=multi_processing'
"""

from __future__ import annotations

import os

# Read when TensorFlow and NumPy are imported. Text needs no GPU; one notice at start-up is enough;
# Keras 3, which nobody here uses, takes 90 MiB; and only a process without threads can be forked.
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ["TF_USE_LEGACY_KERAS"] = "1"
os.environ["OPENBLAS_NUM_THREADS"] = "1"

from absl import flags, logging

from bert_tf import command_line
from bert_tf.data.beam import create_with_beam
from bert_tf.data.creation import ENDINGS, CreationConfig, create_pretraining_data
from bert_tf.data.instances import InstanceConfig

INPUT = flags.DEFINE_string(
    "input_file", None, "Files of UTF-8 text; comma-separated patterns.", required=True
)
OUTPUT = flags.DEFINE_string(
    "output_file", None, "NAME or NAME.tfrecord, for NAME-00000-of-00012.tfrecord...", required=True
)
VOCABULARY = flags.DEFINE_string("vocab_file", None, "vocab.txt, one piece a line.", required=True)
LOWER_CASE = flags.DEFINE_bool("do_lower_case", True, "False for cased models.")
WHOLE_WORDS = flags.DEFINE_bool("do_whole_word_mask", False, "Choose all pieces of a word.")
MAX_SEQ_LENGTH = flags.DEFINE_integer("max_seq_length", 128, "Pieces of an instance, at most.")
MAX_PREDICTIONS = flags.DEFINE_integer("max_predictions_per_seq", 20, "Masked pieces, at most.")
SEED = flags.DEFINE_integer("random_seed", 12345, "Same seed, same bytes.")
DUPES = flags.DEFINE_integer("dupe_factor", 10, "Passes through the text with different masks.")
MASK_RATE = flags.DEFINE_float("masked_lm_prob", 0.15, "Share of the pieces to predict.")
SHORT_RATE = flags.DEFINE_float(
    "short_seq_prob", 0.1, "Share of the passes through a document with shorter instances."
)
PROSE = flags.DEFINE_string(
    "prose", "", "The text is prose in this language (en): paragraphs, not one sentence a line."
)
BLANK_LINES = flags.DEFINE_integer(
    "blank_lines",
    None,
    "So many blank lines end a document; 0: only the end of a file does. Default 1, for prose 0.",
)
WORD_FORM = flags.DEFINE_enum(
    "whole_word_form",
    "per_piece",
    ["per_piece", "per_word"],
    "With --do_whole_word_mask: each piece of a chosen word becomes [MASK], itself or another "
    "piece on its own, as in the original, or all become the same.",
)
NEXT_SENTENCE = flags.DEFINE_bool(
    "next_sentence",
    True,
    "False: one run of sentences in each instance, for config.task.next_sentence=False.",
)
SHARD_MIB = flags.DEFINE_float("shard_mib", 4.0, "MiB of text for each output file, about.")
FORM = flags.DEFINE_enum(
    "form", "records", sorted(ENDINGS), "Instances, or only the tokens to make them of."
)
PROCESSES = flags.DEFINE_integer("processes", 0, "At the same time; 0: one for each core.")
RUNNER = flags.DEFINE_string(
    "runner", "", "Of Apache Beam (DirectRunner, DataflowRunner...), instead of --processes."
)
PIPELINE_OPTIONS = flags.DEFINE_string(
    "pipeline_options", "", "Beam's own, in one string: '--project=mine --region=europe-west1'."
)


def main(unused_argv: list[str]) -> None:
    """Makes the files."""
    config = config_of_flags()
    if RUNNER.value:
        if PROCESSES.value:
            raise ValueError("--processes is not for --runner: see --pipeline_options.")
        made = create_with_beam(config, RUNNER.value, PIPELINE_OPTIONS.value)
    elif PIPELINE_OPTIONS.value:
        raise ValueError("--pipeline_options need a --runner, such as DirectRunner.")
    else:
        made = create_pretraining_data(config, PROCESSES.value or os.cpu_count() or 1)
    amounts = f"{made.instances:,}", config.unit, f"{made.tokens:,}"
    logging.info("made %s %s, %s tokens", *amounts)


def config_of_flags() -> CreationConfig:
    """What to make."""
    return CreationConfig(
        input_file=INPUT.value,
        output_file=OUTPUT.value,
        vocab_file=VOCABULARY.value,
        lower_case=LOWER_CASE.value,
        random_seed=SEED.value,
        language=PROSE.value,
        blank_lines=int(not PROSE.value) if BLANK_LINES.value is None else BLANK_LINES.value,
        shard_bytes=int(SHARD_MIB.value * (1 << 20)),
        form=FORM.value,
        instances=InstanceConfig(
            max_seq_length=MAX_SEQ_LENGTH.value,
            max_predictions_per_seq=MAX_PREDICTIONS.value,
            masked_lm_prob=MASK_RATE.value,
            short_seq_prob=SHORT_RATE.value,
            dupe_factor=DUPES.value,
            whole_words=WORD_FORM.value if WHOLE_WORDS.value else "",
            next_sentence=NEXT_SENTENCE.value,
        ),
    )


if __name__ == "__main__":
    command_line.run_script(main)

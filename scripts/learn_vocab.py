"""Learns a WordPiece vocabulary from text files (needs the extra `vocab`).

    python scripts/learn_vocab.py --input_file='books/*.txt' --output=vocab.txt --vocab_size=8000 \
        --unused=99

Lines may be sentences or paragraphs. The special pieces are where the original release has them:
[PAD] 0, [unused0] to [unused98], [UNK] 100, [CLS] 101, [SEP] 102, [MASK] 103, more [unused]. Equal
text and flags give equal bytes.
"""

from __future__ import annotations

from absl import flags, logging

from bert_tf import command_line, vocabulary
from bert_tf.data.files import find_files

INPUT_FILE = flags.DEFINE_string(
    "input_file", None, "UTF-8 text files: patterns with commas between them.", required=True
)
OUTPUT = flags.DEFINE_string("output", None, "vocab.txt to write.", required=True)
VOCAB_SIZE = flags.DEFINE_integer("vocab_size", 30522, "Lines of the vocabulary, all together.")
UNUSED = flags.DEFINE_integer("unused", vocabulary.UNUSED, "[unused] lines, at least 99.")
LOWER_CASE = flags.DEFINE_bool("do_lower_case", True, "Whether the model is uncased.")
LIMIT_ALPHABET = flags.DEFINE_integer(
    "limit_alphabet", vocabulary.LIMIT_ALPHABET, "Characters to keep, the most frequent ones."
)
MIN_FREQUENCY = flags.DEFINE_integer(
    "min_frequency", vocabulary.MIN_FREQUENCY, "How often a piece must occur.", lower_bound=0
)


def main(unused_argv: list[str]) -> None:
    """Counts words, learns and writes."""
    settings = vocabulary.VocabularySettings(
        VOCAB_SIZE.value, UNUSED.value, LIMIT_ALPHABET.value, MIN_FREQUENCY.value
    )
    counts = vocabulary.WordSplitter(LOWER_CASE.value).count(
        find_files(INPUT_FILE.value, "--input_file")
    )
    logging.info("%s words, %s different.", f"{counts.total():,}", f"{len(counts):,}")
    pieces = vocabulary.learn(counts, settings)
    vocabulary.write(OUTPUT.value, pieces)
    logging.info("Wrote %s: %s pieces.", OUTPUT.value, f"{len(pieces):,}")


if __name__ == "__main__":
    command_line.run_script(main)

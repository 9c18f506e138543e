"""Prints the likeliest words for each [MASK] in sentences, by any masked language model.

    python scripts/fill_mask.py --checkpoint=runs/pretrained --text="The [MASK] sat on the mat."
    python scripts/fill_mask.py --checkpoint=uncased_L-12_H-768_A-12 --input=sentences.txt

The checkpoint is one of pre-training: of the original release, of Hugging Face or a run folder.
"""

from __future__ import annotations

import tensorflow as tf
from absl import flags

from bert_tf import command_line
from bert_tf.config import ModelConfig
from bert_tf.masked_words import MaskFiller

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Masked language model.", required=True)
TEXT = flags.DEFINE_multi_string("text", [], "A sentence with [MASK]; may be given again.")
INPUT = flags.DEFINE_string("input", None, "A UTF-8 file with one sentence a line.")
TOP = flags.DEFINE_integer("top", 5, "Words for each mask.", lower_bound=1)
VOCAB_FILE = flags.DEFINE_string("vocab_file", "", "vocab.txt, where the checkpoint has none.")
LOWER_CASE = flags.DEFINE_enum("lower_case", "auto", ["auto", "true", "false"], "Casing.")


def sentences() -> list[str]:
    """Those of the flags; raises ValueError where there are none."""
    found = list(TEXT.value)
    if INPUT.value:
        try:
            with tf.io.gfile.GFile(INPUT.value) as file:
                found += [line.strip() for line in file.read().split("\n") if line.strip()]
        except (tf.errors.OpError, UnicodeDecodeError) as error:
            raise ValueError(f"--input={INPUT.value} cannot be read as UTF-8 ({error}).") from None
    if not found:
        raise ValueError('there is no sentence; give --text="The [MASK] sat." or --input=FILE.')
    return found


def main(unused_argv: list[str]) -> None:
    """Fills the masks of all sentences."""
    asked = sentences()
    model = ModelConfig(
        init_checkpoint=CHECKPOINT.value, vocab_file=VOCAB_FILE.value, lower_case=LOWER_CASE.value
    )
    filler = MaskFiller.from_checkpoint(model)
    for sentence in asked:
        print(sentence)
        for number, answers in enumerate(filler.fill(sentence, TOP.value), start=1):
            listed = "  ".join(f"{answer.word} {answer.probability:.3f}" for answer in answers)
            print(f"  [MASK] {number}: {listed}")


if __name__ == "__main__":
    command_line.run_script(main)

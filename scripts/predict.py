"""Labels a file with a trained run: JSONL with probabilities, and GLUE's submission file.

    python scripts/predict.py --workdir=runs/sst2 --input=reviews.tsv --output=predictions
    python scripts/predict.py --workdir=runs/sst2 --output=submission      # GLUE's test split

The input has the columns of the training file; a label column may be absent. A run of several tasks
writes a folder for each of them, or answers for the one that --task names.
"""

from __future__ import annotations

import os

from absl import flags

from bert_tf import command_line, prediction, runner
from bert_tf.data import glue
from bert_tf.tasks import answers_of
from bert_tf.tasks.contract import PREDICTIONS_FILE

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
OUTPUT = flags.DEFINE_string("output", None, "Folder for the predictions.", required=True)
SPLIT = flags.DEFINE_enum("split", "test", glue.SPLITS, "What to label; *_mismatched is MNLI's.")
INPUT = flags.DEFINE_string("input", None, "A file instead of the run's own split.")
TASK = flags.DEFINE_string("task", None, "One task of a run of several (default: all of them).")
ACCELERATOR = flags.DEFINE_string("accelerator", None, "auto, cpu, gpu, tpu or multi_worker.")


def main(unused_argv: list[str]) -> None:
    """Predicts as the flags say."""
    session = runner.open_session(WORKDIR.value, ACCELERATOR.value, TASK.value)
    is_chief = session.evaluator.accelerator.is_chief
    if is_chief:
        prediction.make_folder(OUTPUT.value)
    task = session.task_for(SPLIT.value, INPUT.value)
    answers = answers_of(task, "label a file")
    examples = answers.examples(SPLIT.value)
    outputs = session.evaluator.predict(examples)
    if not is_chief:
        return
    files = answers.files(SPLIT.value, examples, outputs)
    paths = prediction.write_files(OUTPUT.value, files)
    for name, path in zip(files, paths, strict=True):
        predictions = files[os.path.join(os.path.dirname(name), PREDICTIONS_FILE)]
        print(f"{len(predictions):,} predictions in {path}")


if __name__ == "__main__":
    command_line.run_script(main)

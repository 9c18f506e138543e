"""Measures a trained run on one of its splits, or on another labelled file.

python scripts/evaluate.py --workdir=runs/sst2
python scripts/evaluate.py --workdir=runs/sst2 --split=test --input=more_reviews.tsv
python scripts/evaluate.py --config=configs/embeddings_minilm.py    # what it starts from, untrained

Of a run of several tasks it measures all, or the one that --task names.
"""

from __future__ import annotations

import os

from absl import flags

from bert_tf import command_line, run_folder, runner
from bert_tf.data import glue

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
CONFIG = command_line.define_config_flag()
SPLIT = flags.DEFINE_enum("split", "dev", glue.SPLITS, "What to measure; *_mismatched is MNLI's.")
INPUT = flags.DEFINE_string("input", None, "A labelled file instead of the run's own split.")
TASK = flags.DEFINE_string("task", None, "One task of a run of several (default: all of them).")
ACCELERATOR = flags.DEFINE_string("accelerator", None, "auto, cpu, gpu, tpu or multi_worker.")


def main(unused_argv: list[str]) -> None:
    """Measures as the flags say."""
    if (WORKDIR.value is None) == (CONFIG.value is None):
        raise ValueError(
            "give --workdir, the folder of a run, or --config, a recipe whose init_checkpoint is "
            "to be measured before any training; one of the two."
        )
    if WORKDIR.value is not None:
        session = runner.open_session(WORKDIR.value, ACCELERATOR.value, TASK.value)
    elif TASK.value is None:
        session = runner.open_untrained(command_line.resolve(CONFIG.value), ACCELERATOR.value)
    else:
        raise ValueError(f"--task={TASK.value} is for a run of several tasks: give its --workdir.")
    task = session.task_for(SPLIT.value, INPUT.value)
    examples = task.examples(SPLIT.value)
    if not examples.targets:
        raise ValueError(
            f"{INPUT.value or 'the split ' + SPLIT.value} has no labels to measure against; "
            "scripts/predict.py labels it."
        )
    metrics = task.metrics(session.evaluator.predict(examples), examples)
    for name, value in metrics.items():
        print(f"{name}: {value:.4f}")
    print(f"on {len(examples):,} examples, with the weights of {session.opened.weights_from}")
    is_chief = session.evaluator.accelerator.is_chief
    if INPUT.value is None and WORKDIR.value is not None and is_chief:
        of_task = f"_{TASK.value}" if TASK.value else ""
        path = os.path.join(WORKDIR.value, f"eval_{SPLIT.value}{of_task}.json")
        with run_folder.writing(path):
            run_folder.write_json(path, metrics | {"examples": len(examples)})


if __name__ == "__main__":
    command_line.run_script(main)

"""SQuAD 1.1 (every question has its answer in the text) with BERT-base, as in the paper.

Command: python scripts/train.py --config=configs/squad_v1_bert_base.py --workdir=runs/squad_v1
Files:   uncased_L-12_H-768_A-12 of the original release in data/; the official files
         (rajpurkar.github.io/SQuAD-explorer) in data/squad/: train-v1.1.json, dev-v1.1.json.
Device:  one accelerator; windows of 384 pieces with batch 32 want 32 GB, less with
         --config.train.accumulation=4 (micro-batches of 8; the same update).
Hours:   not run yet; "at most 1 hour on a single Cloud TPU" (paper, section 3.2).
Score:   exact match 80.8, F1 88.5 on dev (paper, Table 2, BERT-base single); the original
         release's README reports 81.25 and 88.41 with rate 3e-5, batch 12, 2 epochs.
         Ours: not run yet.
"""

from ml_collections import ConfigDict

from bert_tf.command_line import recipe
from bert_tf.config import (
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    TaskConfig,
    TrainConfig,
)


def get_config() -> ConfigDict:
    return recipe(
        RunConfig(
            model=ModelConfig(init_checkpoint="data/uncased_L-12_H-768_A-12"),
            data=DataConfig(
                train="data/squad/train-v1.1.json",
                dev="data/squad/dev-v1.1.json",
                test="data/squad/dev-v1.1.json",  # predict.py answers it for the official scorer
                # run_squad.py of the original release.
                max_seq_length=384,
                doc_stride=128,
                max_query_length=64,
            ),
            task=TaskConfig(name="question_answering"),
            # Paper, section 4.2; the original release's optimizer, without bias correction.
            optimizer=OptimizerConfig(name="bert_adamw", learning_rate=5e-5),
            train=TrainConfig(global_batch_size=32, epochs=3.0, eval_batch_size=64),
        )
    )

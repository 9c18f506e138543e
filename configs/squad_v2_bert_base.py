"""SQuAD 2.0 (the text may hold no answer) with BERT-base, by the paper's settings.

Command: python scripts/train.py --config=configs/squad_v2_bert_base.py --workdir=runs/squad_v2
Files:   uncased_L-12_H-768_A-12 of the original release in data/; the official files
         (rajpurkar.github.io/SQuAD-explorer) in data/squad/: train-v2.0.json, dev-v2.0.json.
Device:  one accelerator; windows of 384 pieces with batch 48 want 40 GB, less with
         --config.train.accumulation=4 (micro-batches of 12; the same update).
Hours:   not run yet.
Score:   the paper has no figure for BERT-base (BERT-large: exact match 78.7, F1 81.9 on dev,
         Table 3). Ours: not run yet.
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
                train="data/squad/train-v2.0.json",
                dev="data/squad/dev-v2.0.json",
                test="data/squad/dev-v2.0.json",  # predict.py answers it for the official scorer
                # run_squad.py of the original release.
                max_seq_length=384,
                doc_stride=128,
                max_query_length=64,
            ),
            task=TaskConfig(name="question_answering", no_answer=True),
            # Paper, section 4.3: 2 epochs, rate 5e-5, batch 48.
            optimizer=OptimizerConfig(name="bert_adamw", learning_rate=5e-5),
            train=TrainConfig(global_batch_size=48, epochs=2.0, eval_batch_size=64),
        )
    )

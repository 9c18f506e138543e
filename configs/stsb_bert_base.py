"""STS-B (similarity of two sentences, from 0 to 5) with BERT-base, as in the paper.

Command: for rate in 5e-5 4e-5 3e-5 2e-5; do
             python scripts/train.py --config=configs/stsb_bert_base.py \
                 --workdir=runs/stsb_bert_base/$rate --config.optimizer.learning_rate=$rate
         done
         The paper (Devlin et al. 2018, section 4.1) takes the rate that is best on dev, and
         does not say which one that was.
Files:   uncased_L-12_H-768_A-12 of the original release in data/; the official GLUE files in
         data/glue/STS-B/.
Device:  one accelerator; the paper used a Cloud TPU.
Hours:   not run yet; "at most 1 hour on a single Cloud TPU" (paper, section 3.2).
Score:   Spearman correlation 85.8 on the GLUE server (paper, Table 1, BERT-base).
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
            # Columns are those of files that predict.py and evaluate.py get by --input.
            data=DataConfig(
                data_dir="data/glue",
                text_a="sentence1",
                text_b="sentence2",
                label="score",
                max_seq_length=128,
            ),
            task=TaskConfig(glue="stsb"),
            # The original release's optimizer, without bias correction.
            optimizer=OptimizerConfig(name="bert_adamw", learning_rate=2e-5),
            train=TrainConfig(global_batch_size=32, epochs=3.0),
        )
    )

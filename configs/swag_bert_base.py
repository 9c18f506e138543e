"""SWAG (which of four sentences goes on with the story?) with BERT-base, as in the paper.

Command: python scripts/train.py --config=configs/swag_bert_base.py --workdir=runs/swag
         python scripts/predict.py --workdir=runs/swag --output=answers     # test.csv has no labels
Files:   train.csv, val.csv and test.csv of the data set (github.com/rowanz/swagaf, folder data) in
         data/swag/; uncased_L-12_H-768_A-12 of the original release in data/.
Device:  one accelerator; a batch of 16 examples is 64 rows for the encoder. 73,546 training
         examples, 3 epochs, 13,791 steps.
Hours:   not run yet.
Score:   accuracy 81.6 on dev (paper, Table 4, BERT-base; BERT-large 86.6 on dev, 86.3 on test).
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
                train="data/swag/train.csv",
                dev="data/swag/val.csv",
                test="data/swag/test.csv",
                # "The given sentence (sentence A) and a possible continuation (sentence B)".
                text_a="sent1",
                text_b="sent2",
                choices="ending0,ending1,ending2,ending3",
                max_seq_length=128,  # the paper does not say; few examples have more than 80
            ),
            task=TaskConfig(name="multiple_choice"),
            # Paper, section 4.4; the original release's optimizer, without bias correction.
            optimizer=OptimizerConfig(name="bert_adamw", learning_rate=2e-5),
            train=TrainConfig(global_batch_size=16, epochs=3.0, eval_batch_size=32),
        )
    )

"""A small BERT (4 layers x 256) from random weights on prose of your own, for a laptop.

Command: python scripts/learn_vocab.py --input_file='data/text/train/*.txt' \
             --output=data/vocab-8000.txt --vocab_size=8000 --unused=99
         python scripts/create_pretraining_data.py --input_file='data/text/train/*.txt' \
             --prose=en --vocab_file=data/vocab-8000.txt \
             --output_file=data/pretraining/laptop-train --form=tokens
         python scripts/create_pretraining_data.py --input_file='data/text/dev/*.txt' \
             --prose=en --vocab_file=data/vocab-8000.txt \
             --output_file=data/pretraining/laptop-dev.tfrecord --dupe_factor=1
         python scripts/train.py --config=configs/pretrain_laptop.py --workdir=runs/laptop
         python scripts/plot_metrics.py --workdir=runs/laptop
Files:   data/text/train/*.txt and other texts in data/text/dev/; the commands make the rest. Pairs,
         masks and packed rows are made anew in every epoch. 5.3 million parameters.
Device:  any; 16 rows of 128 tokens a step, 6,500 steps.
Hours:   HOURS
Score:   SCORE
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
            model=ModelConfig(
                bert_config="configs/shapes/laptop.json",
                vocab_file="data/vocab-8000.txt",
                hidden_dropout=0.0,
                attention_dropout=0.0,
            ),
            data=DataConfig(
                train="data/pretraining/laptop-train*.tokens.npz",
                dev="data/pretraining/laptop-dev*.tfrecord",
                max_seq_length=128,
            ),
            # A short run sees few masked words: a higher rate than the paper's 0.15 gives it more.
            task=TaskConfig(
                name="pretraining",
                packed_sequences=3,
                masked_lm_prob=0.2,
                max_predictions_per_seq=26,
            ),
            # Small models bear, and need, a higher rate than the paper's 1e-4; and nothing is seen
            # often enough to be learnt by heart, so that dropout would only slow this down.
            optimizer=OptimizerConfig(learning_rate=1e-3, warmup_proportion=0.05, beta_2=0.98),
            train=TrainConfig(
                global_batch_size=16,
                steps=6500,
                eval_every=500,
                save_every=500,
                log_every=50,
                steps_per_loop=10,
            ),
        )
    )

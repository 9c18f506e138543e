"""A small BERT (4 layers x 256) from random weights on text of your own, for a laptop.

Command: python scripts/learn_vocab.py --input_file='data/text/*.txt' --output=data/vocab-8000.txt \
             --vocab_size=8000 --unused=99
         python scripts/create_pretraining_data.py --input_file='data/text/*.txt' \
             --output_file=data/pretraining/laptop-train.tfrecord --vocab_file=data/vocab-8000.txt \
             --max_seq_length=128 --max_predictions_per_seq=20 --dupe_factor=5
         python scripts/train.py --config=configs/pretrain_laptop.py --workdir=runs/laptop
Files:   data/pretraining/laptop-{train,dev}*.tfrecord as above, dev from texts that are not in
         train; data/vocab-8000.txt. 5.3 million parameters.
Device:  any; 64 sequences a step, 20,000 steps.
Hours:   not run yet.
Score:   masked-LM and next-sentence accuracy on held-out text: not run yet.
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
                bert_config="configs/shapes/laptop.json", vocab_file="data/vocab-8000.txt"
            ),
            data=DataConfig(
                train="data/pretraining/laptop-train*.tfrecord",
                dev="data/pretraining/laptop-dev*.tfrecord",
                max_seq_length=128,
            ),
            task=TaskConfig(name="pretraining"),
            # Small models bear, and need, a higher rate than the paper's 1e-4.
            optimizer=OptimizerConfig(learning_rate=5e-4, warmup_proportion=0.05),
            train=TrainConfig(
                global_batch_size=64, steps=20_000, eval_every=1000, save_every=500, log_every=100
            ),
        )
    )

"""Goes on pre-training a published BERT on text of your own, before it is fine-tuned.

Command: python scripts/create_pretraining_data.py --input_file='data/text/*.txt' \
             --output_file=data/pretraining/own-train.tfrecord \
             --vocab_file=data/uncased_L-12_H-768_A-12/vocab.txt \
             --max_seq_length=128 --max_predictions_per_seq=20
         python scripts/train.py --config=configs/pretrain_continue.py --workdir=runs/own
         With words of your own, first scripts/extend_checkpoint.py --words=words.txt, then its
         vocab.txt above and --config.model.init_checkpoint=ITS_FOLDER here.
         Where the checkpoint has no next-sentence head (RoBERTa's finding is that none is needed):
         --config.task.next_sentence=False.
Files:   uncased_L-12_H-768_A-12 of the original release in data/;
         data/pretraining/own-{train,dev}*.tfrecord, dev from texts that are not in train.
Device:  one accelerator; 256 sequences a step, 10,000 steps.
Hours:   not run at this size. On 3 books of one author, with a smaller model and other settings:
         held-out masked-LM loss 5.63, 5.07, 4.85 after 100, 200, 300 steps (RESULTS.md).
Score:   held-out masked-LM loss must fall.

The rate is what the original release recommends for this (README, "Pre-training tips": 2e-5).
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
                train="data/pretraining/own-train*.tfrecord",
                dev="data/pretraining/own-dev*.tfrecord",
                max_seq_length=128,
            ),
            task=TaskConfig(name="pretraining"),
            optimizer=OptimizerConfig(name="bert_adamw", learning_rate=2e-5),
            train=TrainConfig(
                global_batch_size=256, steps=10_000, eval_every=1000, eval_batch_size=64
            ),
        )
    )

"""A small BERT (4 layers x 256) from random weights on prose of your own, for a laptop.

Command: python scripts/learn_vocab.py --input_file='data/text/train/*.txt' \
             --output=data/vocab-8000.txt --vocab_size=8000 --unused=99
         python scripts/create_pretraining_data.py --input_file='data/text/train/*.txt' \
             --prose=en --vocab_file=data/vocab-8000.txt \
             --output_file=data/pretraining/laptop-train --form=tokens
         python scripts/create_pretraining_data.py --input_file='data/text/dev/*.txt' --prose=en \
             --vocab_file=data/vocab-8000.txt --dupe_factor=1 --max_seq_length=32 \
             --max_predictions_per_seq=5 --next_sentence=False \
             --output_file=data/pretraining/laptop-dev-32.tfrecord
         python scripts/create_pretraining_data.py --input_file='data/text/dev/*.txt' --prose=en \
             --vocab_file=data/vocab-8000.txt --dupe_factor=1 --max_seq_length=128 \
             --max_predictions_per_seq=20 --output_file=data/pretraining/laptop-dev-128.tfrecord
         python scripts/train.py --config=configs/pretrain_laptop.py:1 --workdir=runs/laptop/phase1
         python scripts/extend_checkpoint.py --input=runs/laptop/phase1 \
             --output=runs/laptop/phase1-128 --positions=128
         python scripts/train.py --config=configs/pretrain_laptop.py:2 --workdir=runs/laptop/phase2
         python scripts/plot_metrics.py --workdir=runs/laptop/phase1    # and phase2
Files:   data/text/train/*.txt and other texts in data/text/dev/; the commands make the rest. Pairs,
         masks and packed rows are made anew in every epoch. 5.3 million parameters.
Device:  any; 2,048 tokens a step: 8,500 steps of 64 rows x 32, then 600 of 16 x 128.
Hours:   1.4 on 2 cores of a Cascade Lake Xeon at 2.5 GHz, beside other programs.
Score:   held-out books: masked-LM loss 4.18, accuracy 30.8% after phase 2; 3.69 and 36.0% on
         rows of 32 tokens after phase 1 (RESULTS.md): 41 books, 20 MB.

Rows of 32 tokens first: to begin with, a word knows no better than to look at all words of its row
alike, and how soon it learns to look at its neighbours depends on how many others there are. With
128 tokens from the start the loss still stood on its first plateau (words by their frequency, about
6.0) after 1,200 steps; with 32 it left it after 550. A pair would halve what a word sees, so that
next sentences come with the longer rows. The other positions begin as copies of the first 32: from
random rows they were no use after 500 steps.
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

# By phase: whether pairs are made, tokens of a row, rows of a step, masked words of a sequence at
# most, steps, first and last rate, steps that warm up.
PHASES = {
    "1": (False, 32, 64, 8, 8500, 1e-3, 2e-4, 250),
    "2": (True, 128, 16, 32, 600, 2e-4, 0.0, 10),
}


def get_config(phase: str = "1") -> ConfigDict:
    if phase not in PHASES:
        raise ValueError(f"the phases of this recipe are {', '.join(PHASES)}, not {phase!r}.")
    pairs, length, rows, predictions, steps, rate, last_rate, warmup = PHASES[phase]
    # Nothing is seen often enough to be learnt by heart: dropout would only slow this down.
    start = ModelConfig(
        bert_config="configs/shapes/laptop.json",
        vocab_file="data/vocab-8000.txt",
        hidden_dropout=0.0,
        attention_dropout=0.0,
    )
    return recipe(
        RunConfig(
            model=start if phase == "1" else ModelConfig(init_checkpoint="runs/laptop/phase1-128"),
            data=DataConfig(
                train="data/pretraining/laptop-train*.tokens.npz",
                dev=f"data/pretraining/laptop-dev-{length}-*.tfrecord",
                max_seq_length=length,
            ),
            # A short run sees few masked words: a higher rate than the paper's 0.15 gives it more.
            task=TaskConfig(
                name="pretraining",
                packed_sequences=3,
                next_sentence=pairs,
                masked_lm_prob=0.25,
                max_predictions_per_seq=predictions,
            ),
            # Small models bear, and need, a higher rate than the paper's 1e-4.
            optimizer=OptimizerConfig(
                learning_rate=rate,
                end_learning_rate=last_rate,
                warmup_proportion=warmup / steps,
                beta_2=0.98,
            ),
            train=TrainConfig(
                global_batch_size=rows,
                steps=steps,
                eval_every=500 if phase == "1" else 200,
                save_every=500,
                log_every=50,
                steps_per_loop=10,
            ),
        )
    )

"""BERT-Large from random weights in two phases, as in the paper (appendix A.2).

Command: for phase in 1 2; do
             python scripts/train.py --config=configs/pretrain_bert_large.py:$phase \
                 --workdir=runs/bert_large/phase$phase
         done
         On few devices: --config.train.accumulation=16 --config.model.recompute=True; the global
         batch stays 256.
Files:   data/pretraining/{train,dev}-{128,512}-*.tfrecord, from scripts/create_pretraining_data.py
         with --max_seq_length=128 --max_predictions_per_seq=20 and --max_seq_length=512
         --max_predictions_per_seq=77; the paper's text is Wikipedia and BooksCorpus, 3.3e9 words.
         vocab.txt of uncased_L-12_H-768_A-12, or one of your own (scripts/learn_vocab.py).
Device:  16 Cloud TPUs, 64 chips (paper); 256 sequences a step, 1,000,000 steps.
Hours:   not run by us; 4 days (paper).
Score:   ours: not run.

Phase 1 has 90% of the steps with 128 tokens, phase 2 the rest with 512, and the rate falls along
one line through both. Phase 2 begins from the weights of phase 1 without its optimizer slots, so
that it warms up for 1% of its steps, which the original did not.
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

# By phase: tokens of a record, steps, first and last rate, share of steps that warm up.
PHASES = {
    "1": (128, 900_000, 1e-4, 1e-5, 10_000 / 900_000),
    "2": (512, 100_000, 1e-5, 0.0, 0.01),
}


def get_config(phase: str = "1") -> ConfigDict:
    if phase not in PHASES:
        raise ValueError(f"the phases of this recipe are {', '.join(PHASES)}, not {phase!r}.")
    length, steps, rate, last_rate, warmup = PHASES[phase]
    start = ModelConfig(
        bert_config="configs/shapes/bert_large.json",
        vocab_file="data/uncased_L-12_H-768_A-12/vocab.txt",
    )
    return recipe(
        RunConfig(
            model=start if phase == "1" else ModelConfig(init_checkpoint="runs/bert_large/phase1"),
            data=DataConfig(
                train=f"data/pretraining/train-{length}-*.tfrecord",
                dev=f"data/pretraining/dev-{length}-*.tfrecord",
                max_seq_length=length,
            ),
            task=TaskConfig(name="pretraining"),
            optimizer=OptimizerConfig(
                name="bert_adamw",
                learning_rate=rate,
                end_learning_rate=last_rate,
                warmup_proportion=warmup,
            ),
            train=TrainConfig(
                global_batch_size=256,
                steps=steps,
                steps_per_loop=1000,
                log_every=1000,
                save_every=1000,
                eval_every=10_000,
                eval_batch_size=64,
            ),
        )
    )

"""BERT from random weights in two phases, as in the paper (appendix A.2), in any published size.

Command: for phase in 1 2; do
             python scripts/train.py --config=configs/pretrain_bert.py:base:$phase \
                 --workdir=runs/bert_base/phase$phase
         done
         Instead of base: large, or layers and hidden size of the 24 small models (Turc et al. 2019,
         "Well-Read Students Learn Better"): 2, 4, 6, 8, 10 or 12, and 128, 256, 512 or 768, such as
         4-256. 12-768 is base.
         On few devices: --config.train.accumulation=16 --config.model.recompute=True; the global
         batch stays 256.
Files:   data/pretraining/{train,dev}-{128,512}-*.tfrecord, from scripts/create_pretraining_data.py
         with --max_seq_length=128 --max_predictions_per_seq=20 and --max_seq_length=512
         --max_predictions_per_seq=77; the paper's text is Wikipedia and BooksCorpus, 3.3e9 words.
         vocab.txt of uncased_L-12_H-768_A-12, or one of your own (scripts/learn_vocab.py).
Device:  base: 4 Cloud TPUs in Pod configuration, 16 chips; large: 16 Cloud TPUs, 64 chips (paper);
         256 sequences a step, 1,000,000 steps.
Hours:   not run by us; 4 days for base as for large (paper). By arithmetic alone, both phases in
         1e18 operations, and hours of one H100 at a tenth of its 990 TFLOP/s in bfloat16, with the
         cost at $3 an hour (large batches of wide models get three or four times as much):
             2-128   0.29    0.8 h     $2       8-512     7.6     21 h    $64
             4-256    1.2    3.5 h    $10      base        24     67 h   $200
             4-512    4.1     12 h    $35      large       82    229 h   $690
Score:   ours: not run.

Phase 1 has 90% of the steps with 128 tokens, phase 2 the rest with 512, and the rate falls along
one line through both. Phase 2 begins from the weights of phase 1 without its optimizer slots, so
that it warms up for 1% of its steps, which the original did not. Rates, batch and steps are those
of base for all sizes.
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

# Layers and hidden size of the small models; 12-768 is base.
LAYERS = (2, 4, 6, 8, 10, 12)
HIDDEN = (128, 256, 512, 768)
SHAPES = {
    **{f"{n}-{h}": f"uncased_L-{n}_H-{h}_A-{h // 64}" for n in LAYERS for h in HIDDEN},
    "12-768": "bert_base",
    "base": "bert_base",
    "large": "bert_large",
}

# By phase: tokens and masked positions of a record, steps, first and last rate, share of steps
# that warm up.
PHASES = {
    "1": (128, 20, 900_000, 1e-4, 1e-5, 10_000 / 900_000),
    "2": (512, 77, 100_000, 1e-5, 0.0, 0.01),
}


def get_config(size_and_phase: str = "base:1") -> ConfigDict:
    size, _, phase = size_and_phase.partition(":")
    if size not in SHAPES:
        raise ValueError(f"the sizes of this recipe are {', '.join(SHAPES)}, not {size!r}.")
    phase = phase or "1"
    if phase not in PHASES:
        raise ValueError(f"the phases of this recipe are {', '.join(PHASES)}, not {phase!r}.")
    length, predictions, steps, rate, last_rate, warmup = PHASES[phase]
    start = ModelConfig(
        bert_config=f"configs/shapes/{SHAPES[size]}.json",
        vocab_file="data/uncased_L-12_H-768_A-12/vocab.txt",
    )
    before = ModelConfig(init_checkpoint=f"runs/bert_{size}/phase1")
    return recipe(
        RunConfig(
            model=start if phase == "1" else before,
            data=DataConfig(
                train=f"data/pretraining/train-{length}-*.tfrecord",
                dev=f"data/pretraining/dev-{length}-*.tfrecord",
                max_seq_length=length,
            ),
            task=TaskConfig(name="pretraining", max_predictions_per_seq=predictions),
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

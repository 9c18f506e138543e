"""BERT-Large with LAMB in batches of 65,536 and 32,768 sequences (You et al. 2020, section 4.2).

Command: for phase in 1 2; do
             python scripts/train.py --config=configs/pretrain_bert_large_lamb.py:$phase \
                 --workdir=runs/bert_large_lamb/phase$phase --config.train.accumulation=32
         done
         With accumulation 32 a step of phase 1 needs memory for 2,048 sequences at a time, over all
         replicas; choose what fits your devices.
Files:   as for configs/pretrain_bert.py.
Device:  a TPUv3 Pod of 1,024 chips (paper); 8,599 steps, which see as many sequences as 1,000,000
         steps of 512.
Hours:   not run by us; 76 minutes (paper, Table 1).
Score:   SQuAD v1.1 F1 90.58 (paper, Table 1). Ours: not run.

Rates and warm-up are those of NVIDIA's published recipe for these batches (DeepLearningExamples,
LanguageModeling/BERT): the paper gives them for constant batches only, 5e-3 with a warm-up of one
fifth at 32,768.
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

# By phase: tokens and masked positions of a record, sequences of a batch, steps, rate, share of
# steps that warm up.
PHASES = {
    "1": (128, 20, 65_536, 7_037, 6e-3, 0.2843),
    "2": (512, 77, 32_768, 1_562, 4e-3, 0.128),
}


def get_config(phase: str = "1") -> ConfigDict:
    if phase not in PHASES:
        raise ValueError(f"the phases of this recipe are {', '.join(PHASES)}, not {phase!r}.")
    length, predictions, batch, steps, rate, warmup = PHASES[phase]
    start = ModelConfig(
        bert_config="configs/shapes/bert_large.json",
        vocab_file="data/uncased_L-12_H-768_A-12/vocab.txt",
    )
    before = ModelConfig(init_checkpoint="runs/bert_large_lamb/phase1")
    return recipe(
        RunConfig(
            model=start if phase == "1" else before,
            data=DataConfig(
                train=f"data/pretraining/train-{length}-*.tfrecord",
                dev=f"data/pretraining/dev-{length}-*.tfrecord",
                max_seq_length=length,
            ),
            task=TaskConfig(name="pretraining", max_predictions_per_seq=predictions),
            optimizer=OptimizerConfig(name="lamb", learning_rate=rate, warmup_proportion=warmup),
            train=TrainConfig(
                global_batch_size=batch,
                steps=steps,
                save_every=100,
                eval_every=500,
                eval_batch_size=1024,
            ),
        )
    )

"""CoNLL-2003 (English named entities: person, organisation, place, other) with BERT-base, cased.

Command: python scripts/train.py --config=configs/conll2003_bert_base.py --workdir=runs/conll2003
         python scripts/evaluate.py --workdir=runs/conll2003 --split=test
Files:   eng.train, eng.testa and eng.testb of the shared task in data/conll2003/ (the Reuters text
         needs an agreement with NIST); cased_L-12_H-768_A-12 in data/.
Device:  one GPU or TPU; 14,041 training sentences, 3 epochs, 1,317 steps.
Hours:   not run yet.
Score:   not run yet. The paper reports F1 92.4 on test for fine-tuned BERT-base (section 5.3, table
         7), with the text around each sentence as context; sentences alone, as here, reach less
         (google-research/bert#223).
Cased:   capitals tell names. Part-of-speech tags are in column 1: --config.data.label=1.
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
            model=ModelConfig(init_checkpoint="data/cased_L-12_H-768_A-12"),
            data=DataConfig(
                train="data/conll2003/eng.train",
                dev="data/conll2003/eng.testa",
                test="data/conll2003/eng.testb",
                text_a="0",
                label="-1",
                max_seq_length=256,
            ),
            task=TaskConfig(name="tagging"),
            optimizer=OptimizerConfig(name="bert_adamw", learning_rate=5e-5),
            train=TrainConfig(global_batch_size=32, epochs=3.0, eval_every=400),
        )
    )

"""CoNLL-2003 (English named entities) by the paper's feature-based approach: BERT does not learn.

Command: python scripts/train.py --config=configs/conll2003_features.py --workdir=runs/features
         python scripts/evaluate.py --workdir=runs/features --split=test
Files:   eng.train, eng.testa and eng.testb of the shared task in data/conll2003/ (the Reuters text
         needs an agreement with NIST); cased_L-12_H-768_A-12 in data/.
Device:  one GPU or TPU; 14,041 training sentences, 10 epochs, 4,390 steps.
Hours:   not run yet.
Score:   not run yet. The paper reports F1 96.1 on dev for the last four layers joined, 96.4 for
         fine-tuned BERT-base (section 5.3, table 7), with the text around each sentence as context;
         sentences alone, as here, reach less (google-research/bert#223).
Head:    a BiLSTM of two layers with 768 units in each direction, then the classifier. The paper
         does not tell its learning rate or its epochs: those below are ours.
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
            task=TaskConfig(name="tagging", feature_layers=4),
            optimizer=OptimizerConfig(name="adamw", learning_rate=1e-3, frozen="bert/"),
            train=TrainConfig(global_batch_size=32, epochs=10.0, eval_every=439),
        )
    )

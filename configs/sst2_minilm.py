"""SST-2 (film reviews, positive or negative) with MiniLM-L6 weights.

    python scripts/train.py --config=configs/sst2_minilm.py --workdir=runs/sst2 \
        --config.model.init_checkpoint=DIR --config.data.data_dir=GLUE_DIR
"""

from ml_collections import ConfigDict

from bert_tf.command_line import recipe
from bert_tf.config import DataConfig, ModelConfig, OptimizerConfig, RunConfig, TaskConfig, TrainConfig


def get_config() -> ConfigDict:
    return recipe(
        RunConfig(
            model=ModelConfig(init_checkpoint="minilm"),
            data=DataConfig(data_dir="glue", max_seq_length=128),
            task=TaskConfig(glue="sst2"),
            optimizer=OptimizerConfig(learning_rate=5e-5),
            train=TrainConfig(global_batch_size=32, epochs=1.0, eval_every=500),
        )
    )

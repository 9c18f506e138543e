"""Fine-tunes a model as a recipe says; run again with the same command, it continues.

    python scripts/train.py --config=configs/sst2_minilm.py --workdir=runs/sst2 \
        --config.data.data_dir=/path/to/glue

Any field of the recipe can be overridden: --config.optimizer.learning_rate=3e-5.
"""

from __future__ import annotations

from absl import flags

from bert_tf import command_line, runner

CONFIG = command_line.define_config_flag()
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; gs:// works.", required=True)
ACCELERATOR = flags.DEFINE_string("accelerator", None, "auto, cpu, gpu, tpu or multi_worker.")
TPU = flags.DEFINE_string("tpu", None, "Name of the TPU; `local` on a TPU VM.")
RESTARTS = flags.DEFINE_integer("restarts", 1, "Train with this many seeds and keep the best.")
flags.mark_flag_as_required("config")


def main(unused_argv: list[str]) -> None:
    """Trains as the flags say."""
    config = CONFIG.value
    for flag in (ACCELERATOR, TPU):
        if flag.value is not None:
            config.runtime[flag.name] = flag.value
    runner.train(command_line.resolve(config), WORKDIR.value, RESTARTS.value)


if __name__ == "__main__":
    command_line.run_script(main)

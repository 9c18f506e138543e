"""Sentence embeddings by the scripts: a checkpoint measured before training, and exported."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_text  # noqa: F401 - the ops of an export

import bert_tf
from tests.test_scripts import ROOT, run_script
from tests.tiny_run import CHECKPOINT

RECIPE = ROOT / "configs" / "embeddings_minilm.py"

# ml_collections loads recipes with it on every Python before 3.12.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


def evaluate_untrained(checkpoint: str, data: str) -> str:
    done = run_script(
        "evaluate",
        f"--config={RECIPE}",
        f"--config.model.init_checkpoint={checkpoint}",
        f"--config.data.data_dir={data}",
        "--config.data.max_seq_length=40",
        "--config.runtime.accelerator=cpu",
        "--config.runtime.dtype=float32",
    )
    assert done.code == 0, done.stderr
    return done.stdout


def test_a_checkpoint_is_measured_before_training(tmp_path: pathlib.Path) -> None:
    (tmp_path / "dev.tsv").write_text(
        "index\tsentence1\tsentence2\tscore\n"
        "0\tthe cat sat\tthe cat sat\t5.0\n"
        "1\ta red house\tthe dog ran\t0.5\n"
        "2\ta new book\ta book\t3.0\n"
    )
    printed = evaluate_untrained(str(CHECKPOINT), str(tmp_path))
    names = [line.split(":")[0] for line in printed.splitlines()]
    assert names[:3] == ["spearman", "pearson", "loss"]
    assert f"on 3 examples, with the weights of {CHECKPOINT}" in printed
    assert [path.name for path in tmp_path.iterdir()] == ["dev.tsv"]


def test_a_checkpoint_is_exported(tmp_path: pathlib.Path) -> None:
    arguments = [f"--checkpoint={CHECKPOINT}", f"--output={tmp_path}", "--max_seq_length=16"]
    done = run_script("export", *arguments, "--pooling=max", "--nonormalize")
    assert done.code == 0, done.stderr
    assert "embedding: float32 [None, 32]" in done.stdout
    texts = ["the cat", "a new book"]
    embed = tf.saved_model.load(str(tmp_path / "1")).signatures["embed"]
    expected = bert_tf.load(str(CHECKPOINT)).embed(texts, pooling="max", normalize=False)
    np.testing.assert_allclose(embed(text=tf.constant(texts))["embedding"], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("export", [], "give --workdir, the folder of a run, or --checkpoint"),
        ("export", ["--workdir=a", "--checkpoint=b"], "one of the two"),
        ("export", ["--checkpoint=b"], "--output is needed with --checkpoint"),
        ("evaluate", [], "give --workdir, the folder of a run, or --config"),
    ],
)
def test_mistakes(script: str, arguments: list[str], message: str) -> None:
    done = run_script(script, *arguments)
    assert done.code == 1
    assert message in done.stderr


@pytest.mark.slow
def test_stsb_before_training(minilm: str, shared: pathlib.Path) -> None:
    """The vectors of all-MiniLM-L6-v2 as they are, on STS-B's 1,500 dev pairs."""
    folder = shared / "data" / "glue"
    if not (folder / "STS-B" / "dev.tsv").exists():
        pytest.skip(f"STS-B not found at {folder}")
    printed = evaluate_untrained(minilm, str(folder))
    assert float(printed.splitlines()[0].removeprefix("spearman: ")) > 0.82

"""A tiny recipe through the real TPU compiler, where its environment was made before."""

from __future__ import annotations

import json
import pathlib

import pytest

from bert_tf.preflight import environment
from tests.test_scripts import ok, run_script, write_recipe
from tests.tiny_run import tiny_run

pytestmark = [
    pytest.mark.skipif(
        not environment.is_made(environment.default_cache()),
        reason="the TPU compiler is not in ~/.cache/bert_tf; scripts/tpu_preflight.py installs it",
    ),
    # ml_collections loads recipes with it on every Python before 3.12.
    pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning"),
]


def test_a_tiny_recipe_on_two_by_two_chips(tmp_path: pathlib.Path) -> None:
    recipe = write_recipe(tmp_path, tiny_run(tmp_path, runtime={"dtype": "bfloat16"}))
    output = tmp_path / "answers.json"
    done = ok(run_script("tpu_preflight", recipe, "--topology=v5e:2x2", f"--output={output}"))
    train, evaluate = json.loads(output.read_text())["answers"]
    assert (train["program"], evaluate["program"]) == ("train", "evaluate")
    assert train["replicas"] == 4
    assert (train["batch_size"], evaluate["batch_size"]) == (16, 8)
    for answer in (train, evaluate):
        assert not answer["problems"]
        assert 0.0 < answer["hbm_used"] < 0.1
        assert answer["flops"] > 0.0
    assert "fits" in done.stdout


def test_a_topology_that_is_none(tmp_path: pathlib.Path) -> None:
    recipe = write_recipe(tmp_path, tiny_run(tmp_path))
    done = run_script("tpu_preflight", recipe, "--topology=v5e:3")
    assert done.code == 1
    assert "--topology=v5e:3 is none that libtpu knows" in done.stderr

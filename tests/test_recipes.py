"""Every recipe gives a run that could start: fields, shapes and batch sizes."""

from __future__ import annotations

import dataclasses
import pathlib
import runpy
from typing import Any

import pytest

from bert_tf.command_line import resolve
from bert_tf.config import BertConfig, RunConfig
from bert_tf.encoder import BertEncoder, variables_by_name
from bert_tf.tasks import TASKS
from tests.test_encoder_weights import PARAMETERS, published_config

REPOSITORY = pathlib.Path(__file__).parents[1]
RECIPES = sorted((REPOSITORY / "configs").glob("*.py"))
# Recipe, what its argument says before the phase, and the folder of its runs.
IN_PHASES = (
    ("pretrain_bert", "base:", "bert_base"),
    ("pretrain_bert", "large:", "bert_large"),
    ("pretrain_bert", "4-256:", "bert_4-256"),
    ("pretrain_bert_large_lamb", "", "bert_large_lamb"),
)


def run_of(recipe: str, *argument: str) -> RunConfig:
    get_config: Any = runpy.run_path(str(REPOSITORY / "configs" / f"{recipe}.py"))["get_config"]
    return resolve(get_config(*argument))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_resolves(path: pathlib.Path) -> None:
    run = run_of(path.stem)
    run.train.check(replicas=1)
    assert run.task.name in TASKS
    if run.model.bert_config:
        config = BertConfig.from_file(str(REPOSITORY / run.model.bert_config))
        run.data.check_length(config)
    text = path.read_text("utf-8")
    assert f"configs/{path.name}" in text or "quickstart.sh" in text, "its command"


@pytest.mark.parametrize(("recipe", "size", "folder"), IN_PHASES)
def test_phases(recipe: str, size: str, folder: str) -> None:
    """Nine tenths with 128 tokens, the rest with 512, from the weights of the first."""
    first, second = run_of(recipe, f"{size}1"), run_of(recipe, f"{size}2")
    assert first == run_of(recipe, *filter(None, [size.rstrip(":")]))
    assert (first.data.max_seq_length, second.data.max_seq_length) == (128, 512)
    assert not first.model.init_checkpoint
    assert second.model.init_checkpoint == f"runs/{folder}/phase1"
    seen = [run.train.steps * run.train.global_batch_size for run in (first, second)]
    assert seen[0] / sum(seen) == pytest.approx(0.9, abs=0.001)
    with pytest.raises(ValueError, match="are 1, 2, not '3'"):
        run_of(recipe, f"{size}3")


@pytest.mark.parametrize(("layers", "hidden"), PARAMETERS)
def test_every_published_size_has_a_recipe(layers: int, hidden: int) -> None:
    """Those whose parameters tests/test_encoder_weights.py counts and compares."""
    name = {(24, 1024): "large"}.get((layers, hidden), f"{layers}-{hidden}")
    run = run_of("pretrain_bert", name)
    config = BertConfig.from_file(str(REPOSITORY / run.model.bert_config))
    published = published_config(layers, hidden)
    assert config == dataclasses.replace(published, hidden_act="gelu_approximate")


def test_other_sizes_are_refused() -> None:
    assert run_of("pretrain_bert", "12-768").model == run_of("pretrain_bert").model
    for size in ("huge", "3-256", "4-300", "1"):
        with pytest.raises(ValueError, match=r"are 2-128, .*, base, large, not"):
            run_of("pretrain_bert", size)


def test_the_laptop_model_is_as_small_as_its_recipe_says() -> None:
    config = BertConfig.from_file(str(REPOSITORY / "configs/shapes/laptop.json"))
    variables = variables_by_name(BertEncoder(config)).values()
    size = sum(variable.shape.num_elements() for variable in variables)
    assert size == pytest.approx(5.3e6, rel=0.01)
    assert "5.3 million parameters" in (REPOSITORY / "configs/pretrain_laptop.py").read_text()

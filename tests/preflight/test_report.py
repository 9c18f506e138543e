"""The search for the largest batch, and what is said of an answer."""

from __future__ import annotations

import pytest

from bert_tf.config import TrainConfig
from bert_tf.preflight.report import Answer, search, shown


def answer(batch_size: int, used: float = 1.0, problems: tuple[str, ...] = ()) -> Answer:
    return Answer("train", batch_size, 4, 128, 3.0, used, 15.75, 2e12, 3e9, list(problems), [])


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("most", [32, 40, 333, 1024, 5000])
def test_the_largest_batch_is_found_to_an_eighth(most: int, power: float) -> None:
    tried: list[int] = []

    def compile_at(size: int) -> list[Answer]:
        tried.append(size)
        return [answer(size, used=1.0 + 14.75 * (size / most) ** power)]

    *_, last = search(TrainConfig(global_batch_size=64), 4, compile_at)
    assert last.fits
    assert last.batch_size <= most
    step = 8 * 4
    assert last.batch_size + max(step, last.batch_size / 8) >= most
    assert len(tried) == len(set(tried)), "nothing is compiled twice"
    assert all(size % step == 0 for size in tried)
    assert len(tried) <= (7 if power == 1.0 else 11), tried


def test_nothing_fits() -> None:
    answers = list(search(TrainConfig(global_batch_size=64), 4, lambda size: [answer(size, 99.0)]))
    assert [each.batch_size for each in answers] == [64, 32]


def test_an_answer_says_everything() -> None:
    text = shown(answer(64, problems=("a shape that is not static: Where",)))
    assert "batch 64 on 4 device(s), 128 tokens a row: fits, 1.00 of 15.75 GiB" in text
    assert "2.00 TFLOP and 3.0 GB" in text
    assert "PROBLEM: a shape that is not static: Where" in text
    refused = shown(answer(64, used=20.0))
    assert "DOES NOT FIT" in refused
    assert "--config.model.recompute=True" in refused

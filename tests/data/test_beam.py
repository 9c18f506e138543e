"""Apache Beam makes the same files, and tells a mistake as the processes do."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import sys

import pytest

from bert_tf.data import creation
from bert_tf.data.beam import create_with_beam
from bert_tf.data.creation import CreationConfig, create_pretraining_data
from tests.data.test_creation import contents, write_inputs

# DirectRunner would first try to download another local runner, and then fall back to this one.
LOCAL = "FnApiRunner"


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> CreationConfig:
    """Inputs whose output was made without Beam."""
    config = write_inputs(tmp_path_factory.mktemp("beam"))
    create_pretraining_data(config, processes=1)
    return config


@pytest.fixture
def again(config: CreationConfig, tmp_path: pathlib.Path) -> CreationConfig:
    """The same for another folder."""
    return dataclasses.replace(config, output_file=f"{tmp_path}/out/x.tfrecord")


@pytest.fixture
def _beam() -> None:
    pytest.importorskip("apache_beam", reason="apache-beam is not installed (extra `beam`)")


def test_without_beam_the_error_says_how_to_install_it(
    again: CreationConfig, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(ValueError, match=r"pip install 'bert_tf\[beam\]'"):
        create_with_beam(again, LOCAL, "")
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("_beam")
def test_the_bytes_are_the_same_and_a_stopped_run_goes_on(
    config: CreationConfig, again: CreationConfig
) -> None:
    made = create_with_beam(again, LOCAL, "")
    there, expected = (pathlib.Path(output.output_file).parent for output in (again, config))
    assert contents(there) == contents(expected)
    sizes = [os.path.getsize(path) for path in expected.parent.glob("?.txt")]
    assert made.text_bytes == sum(sizes)
    assert 5 * made.instances < made.tokens <= 32 * made.instances

    lost = there / "x-00003-of-00008.tfrecord"
    lost.unlink()
    for leftover in (".x-00003-of-00008.tfrecord.1f2e.tmp", "x-00003-of-00008.error"):
        (there / leftover).write_text("of a worker that was killed")
    times = {path: path.stat().st_mtime_ns for path in there.glob("x-*.tfrecord")}
    assert 0 < create_with_beam(again, LOCAL, "").instances < made.instances / 4
    assert contents(there) == contents(expected)
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())
    assert create_with_beam(again, LOCAL, "").instances == 0


@pytest.mark.usefixtures("_beam")
def test_a_mistake_in_the_text_is_told_as_without_beam(tmp_path: pathlib.Path) -> None:
    config = write_inputs(tmp_path)
    text = (tmp_path / "b.txt").read_bytes()
    (tmp_path / "b.txt").write_bytes(text[:3000] + b"\xff" + text[3001:])
    with pytest.raises(ValueError, match=r"b\.txt, line \d+: byte 0xff is not UTF-8") as one:
        create_pretraining_data(config, processes=1)
    with pytest.raises(ValueError, match="is not UTF-8") as other:
        create_with_beam(config, LOCAL, "")
    assert str(other.value) == str(one.value)
    names = list(contents(tmp_path / "out"))
    assert sum(name.startswith("x-") for name in names) == 7, "the other shards are made"
    assert not [name for name in names if name.endswith(".error")]


@pytest.mark.usefixtures("_beam")
def test_two_tries_of_a_shard_do_not_meet(
    config: CreationConfig, again: CreationConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A runner may start a second one while the first still writes."""
    create_shard, names = creation.create_shard, []

    def note(*arguments: object) -> creation.Amount:
        names.append(arguments[-1])
        return create_shard(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(creation, "create_shard", note)
    create_with_beam(again, LOCAL, "")
    assert len(set(names)) == len(names) == 8


@pytest.mark.usefixtures("_beam")
@pytest.mark.parametrize(
    ("runner", "options", "message"),
    [
        (LOCAL, "--direct_num_workers=two", "invalid int value: 'two'"),
        ("NoRunner", "", "NoRunner"),
        ("DataflowRunner", "", "validations errors"),
    ],
)
def test_mistakes_in_the_options_are_found_before_anything_is_written(
    again: CreationConfig, tmp_path: pathlib.Path, runner: str, options: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        create_with_beam(again, runner, options)
    assert not list(tmp_path.iterdir())

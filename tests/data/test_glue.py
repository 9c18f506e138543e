"""The GLUE table, on files laid out like the official ones, and on the real ones where they are."""

from __future__ import annotations

import pathlib

import pytest

from bert_tf import metrics
from bert_tf.data.glue import GLUE, read_split, submission_lines
from bert_tf.tasks.classification import Labels

# Official headers; a train or dev row, and a test row. MRPC's official files begin with a BOM.
LAYOUTS = {
    "cola": ("gj04\t1\t\tA row.\n", "index\tsentence\n0\tA row.\n"),
    "sst2": ("sentence\tlabel\nA row. \t1\n", "index\tsentence\n0\tA row.\n"),
    "mrpc": (
        "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t70\t71\tA row.\tB row.\n",
        "index\t#1 ID\t#2 ID\t#1 String\t#2 String\n0\t70\t71\tA row.\tB row.\n",
    ),
    "stsb": (
        "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore\n"
        "0\tg\tf\t2012\t1\tnone\tnone\tA row.\tB row.\t3.800\n",
        "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\n"
        "0\tg\tf\t2012\t1\tnone\tnone\tA row.\tB row.\n",
    ),
    "qqp": (
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n0\t1\t2\tA row.\tB row.\t1\n"
        '7\t8\t9\tBroken\n"?\tC row.\t0\n',
        "id\tquestion1\tquestion2\n0\tA row.\tB row.\n",
    ),
    "mnli": (
        "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\t"
        "sentence1_parse\tsentence2_parse\tsentence1\tsentence2\tlabel1\tgold_label\n"
        "0\t1\t1n\tg\t( A )\t( B )\t(A)\t(B)\tA row.\tB row.\tneutral\tentailment\n",
        "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\t"
        "sentence1_parse\tsentence2_parse\tsentence1\tsentence2\n"
        "0\t1\t1n\tg\t( A )\t( B )\t(A)\t(B)\tA row.\tB row.\n",
    ),
    "qnli": (
        "index\tquestion\tsentence\tlabel\n0\tA row.\tB row.\tentailment\n",
        "index\tquestion\tsentence\n0\tA row.\tB row.\n",
    ),
    "rte": (
        "index\tsentence1\tsentence2\tlabel\n0\tA row.\tB row.\tnot_entailment\n",
        "index\tsentence1\tsentence2\n0\tA row.\tB row.\n",
    ),
    "wnli": (
        "index\tsentence1\tsentence2\tlabel\n0\tA row.\tB row.\t1\n",
        "index\tsentence1\tsentence2\n0\tA row.\tB row.\n",
    ),
}
EXPECTED = {"stsb": "3.800", "mnli": "entailment", "qnli": "entailment", "rte": "not_entailment"}


@pytest.fixture(scope="module")
def glue_data(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("glue_data")
    for name, (labelled, test) in LAYOUTS.items():
        (folder / GLUE[name].folder).mkdir()
        for split, files in GLUE[name].files.items():
            content = test if split.startswith("test") else labelled
            path = folder / GLUE[name].folder / files[0]
            path.write_text(content, encoding="utf-8", newline="")
    return folder


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_split_of_the_official_layout(glue_data: pathlib.Path, name: str) -> None:
    task = GLUE[name]
    labels = Labels(task.kind, task.labels)
    for split in task.files:
        examples = read_split(task, str(glue_data), split)
        assert examples.text_a[0].strip() == b"A row."
        assert examples.text_b == (None if name in ("cola", "sst2") else [b"B row."])
        if split.startswith("test"):
            assert (examples.labels, examples.ids) == (None, ["0"])
        else:
            assert examples.labels == [EXPECTED.get(name, "1")]
            assert len(labels.encode(examples)) == 1
    assert read_split(task, str(glue_data / task.folder), "train").text_a == (
        read_split(task, str(glue_data), "train").text_a
    )


def test_the_table_is_complete_and_names_known_metrics() -> None:
    assert set(GLUE) == set(LAYOUTS)
    for task in GLUE.values():
        assert set(task.metrics) <= set(metrics.METRICS)
        assert set(task.submissions) == {split for split in task.files if split.startswith("test")}
        assert (task.kind == "regression") == (not task.labels)
    # The average of Table 1 for BERT-base.
    scores = [score for task in GLUE.values() for score in task.paper_scores.values()]
    assert round(sum(scores) / len(scores), 1) == 79.6


def test_the_original_files_of_mrpc(tmp_path: pathlib.Path) -> None:
    header = "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n"
    path = tmp_path / "msr_paraphrase_test.txt"
    path.write_text(header + "0\t1\t2\tA\tB\r\n", encoding="utf-8", newline="")
    examples = read_split(GLUE["mrpc"], str(tmp_path), "test")
    assert (examples.text_b, examples.labels, examples.ids) == ([b"B"], ["0"], None)


def test_missing_files_and_splits(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match=r"The dev split of RTE is not at .*RTE/dev\.tsv or "):
        read_split(GLUE["rte"], str(tmp_path), "dev")
    with pytest.raises(ValueError, match=r"RTE has no split 'dev_matched', only train, dev, test"):
        read_split(GLUE["rte"], str(tmp_path), "dev_matched")


def test_submission_of_classes() -> None:
    lines = submission_lines(["3", "5"], ["entailment", "not_entailment"])
    assert lines == ["index\tprediction", "3\tentailment", "5\tnot_entailment"]


def test_submission_of_scores() -> None:
    lines = submission_lines(None, [-0.2, 2.34567, 5.1])
    assert lines == ["index\tprediction", "0\t0.000", "1\t2.346", "2\t5.000"]
    with pytest.raises(ValueError, match="the score nan of a prediction is not a finite number"):
        submission_lines(None, [float("nan")])
    with pytest.raises(ValueError, match="1 predictions for 2 examples"):
        submission_lines(["0", "1"], [1.0])


@pytest.mark.parametrize(
    ("name", "train", "dev"),
    [("sst2", 67349, 872), ("cola", 8551, 1043), ("rte", 2490, 277), ("stsb", 5749, 1500)],
)
def test_row_counts_of_the_real_files(
    shared: pathlib.Path, name: str, train: int, dev: int
) -> None:
    folder = shared / "data" / "glue"
    if not folder.is_dir():
        pytest.skip(f"GLUE not found at {folder}")
    task = GLUE[name]
    for split, count in {"train": train, "dev": dev}.items():
        examples = read_split(task, str(folder), split)
        assert len(examples) == count
        assert len(Labels(task.kind, task.labels).encode(examples)) == count
    assert Labels.infer(task.kind, examples).names == tuple(sorted(task.labels))

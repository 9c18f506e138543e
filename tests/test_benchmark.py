"""scripts/benchmark.py and its modules: arithmetic, verdicts, the protocol, and tiny whole runs."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import driver
import environments
import inputs
import numpy as np
import processes
import pytest
import report
import workloads
from driver import Result
from protocol import Job
from workloads import Shape, Variant, Workload

ROOT = pathlib.Path(__file__).parent.parent
CHECKPOINT = ROOT / "tests" / "goldens" / "hf" / "tiny_pretraining"
BASE = workloads.SHAPES["base"]


def result(peer: str, walls: list[float], note: str = "", variant: str = "float32") -> Result:
    own = Result("forward/base/8x128", peer, variant, "float32", note)
    own.walls, own.cpus, own.units = walls, [2 * wall for wall in walls], 8.0
    own.qualifying = {"wall": 1.0, "cpu": 2.0} if walls else {}
    return own


def measured(*results: Result, kind: str = "forward", work: float = 1e12) -> report.Measured:
    return report.Measured("forward/base/8x128", kind, "sequences", work, list(results))


# ------------------------------------------------------------------------------------- arithmetic


def test_lengths_are_those_of_sst2() -> None:
    assert workloads.SST2_SENTENCES == 67349
    counts = np.array(workloads.SST2_LENGTHS)
    assert np.arange(len(counts)) @ counts / counts.sum() == pytest.approx(13.319, abs=1e-3)


def test_parameters_are_those_of_bert_base() -> None:
    assert workloads.parameters(BASE) == 109_482_240 + 2 * 768 + 2  # encoder, and two classes


def test_flops_count_a_small_model_by_hand() -> None:
    shape = Shape(layers=1, hidden=2, heads=1, inner=4, vocabulary=10)
    # Query, key, value, output: 4 x 2 x 2; feed-forward: 2 x 2 x 4. Twice that for each token.
    of_weights = 2 * (4 * 2 * 2 + 2 * 2 * 4) * 3
    of_attention = 2 * (3 * 3 * 2) * 2  # scores, and what they weigh
    of_pooler = 2 * 2 * 2
    expected = of_weights + of_attention + of_pooler
    assert workloads.forward_flops(shape, np.array([3])) == expected
    of_words = 2 * 2 * (2 * 2 + 2 * 10)  # two predictions
    assert workloads.forward_flops(shape, np.array([3]), 2) == expected + of_words


def test_a_training_step_is_three_forward_passes() -> None:
    forward = Workload("forward", "tiny", 8, 32, rows=8)
    training = dataclasses.replace(forward, kind="fine_tuning")
    rows = workloads.make_rows(forward)
    assert workloads.work(training, rows) == 3 * workloads.work(forward, rows)


def test_every_workload_has_a_name_of_its_own() -> None:
    for found in (workloads.all_workloads(1024), workloads.tiny_workloads()):
        assert len({workload.name for workload in found}) == len(found)


# ------------------------------------------------------------------------------- rows and batches


def test_rows_are_sequences_with_masked_words() -> None:
    workload = Workload("pretraining", "tiny", 4, 32, rows=9, lengths="short", predictions=5)
    rows = workloads.make_rows(workload)
    splits, ids = rows["row_splits"], rows["token_ids"]
    lengths = np.diff(splits)
    assert lengths.min() >= 4
    assert lengths.max() <= 32
    assert (ids[splits[:-1]] == workloads.CLS).all()
    assert (ids[splits[1:] - 1] == workloads.SEP).all()
    masked = rows["masked_weights"] > 0
    assert masked.sum(axis=1).min() >= 1
    places = (splits[:-1, np.newaxis] + rows["masked_positions"])[masked]
    assert (ids[places] == workloads.MASK).all()
    assert (rows["masked_ids"][masked] >= len(workloads.SPECIAL_PIECES)).all()
    assert (rows["masked_ids"][~masked] == 0).all()


@pytest.mark.parametrize("order", ["sorted", "as_they_come", "padded"])
def test_batches_hold_every_row_once(order: str) -> None:
    workload = Workload("forward", "tiny", 4, 32, rows=10, lengths="sst2")
    rows = workloads.make_rows(workload)
    batches, numbers = workloads.make_batches(rows, workload, Variant(order=order))
    assert sorted(numbers) == list(range(10))
    assert sum(batch["mask"].sum() for batch in batches) == len(rows["token_ids"])
    widths = [batch["mask"].shape[1] for batch in batches]
    if order == "padded":
        assert set(widths) == {32}
    if order == "sorted":
        assert widths == sorted(widths, reverse=True)
    labels = np.concatenate([batch["labels"] for batch in batches])
    assert (labels[np.argsort(numbers)] == rows["labels"]).all()


def test_what_is_compiled_gets_few_widths() -> None:
    workload = Workload("forward", "tiny", 4, 64, rows=40, lengths="sst2")
    batches, _ = workloads.make_batches(
        workloads.make_rows(workload), workload, Variant(compiled=True)
    )
    assert {batch["mask"].shape[1] % 32 for batch in batches} == {0}


def test_made_up_text_has_known_and_unknown_words() -> None:
    pieces = inputs.vocabulary(500)
    assert len(set(pieces)) == 500
    text = inputs.text(3000, pieces)
    assert "é" in text
    assert "\n\n" in text
    lines = inputs.paragraphs(Workload("tokenizer", text="ascii"), text).splitlines()
    assert lines
    assert all(line.isascii() for line in lines)
    accents = inputs.paragraphs(Workload("tokenizer", text="accents"), text).splitlines()
    assert [f"{line} é" for line in lines] == accents


# ------------------------------------------------------------------------------ what is made of it


def test_the_best_settings_of_each_library_are_compared() -> None:
    one = measured(
        result("bert_tf", [1.0, 1.1, 1.2]),
        result("torch", [4.0, 4.0, 9.0]),
        result("torch", [2.2, 2.2, 2.3], variant="bfloat16"),
        result("official", [1.0], note="failed in round 2: ended"),
    )
    line = report.verdict(one)
    assert "2.00 times the speed of torch (bfloat16)" in line
    assert "overlap" not in line


def test_ranges_that_overlap_are_told() -> None:
    one = measured(result("bert_tf", [1.0, 1.1, 1.6]), result("torch", [1.2, 1.5, 1.7]))
    assert "overlap" in report.verdict(one)


def test_there_is_no_verdict_without_a_peer_or_on_a_busy_machine() -> None:
    alone = measured(result("bert_tf", [1.0]))
    assert report.verdict(alone) == ""
    both = measured(result("bert_tf", [1.0]), result("torch", [2.0]))
    assert len(report.verdicts([both], load=1.5)) == 1
    refused = report.verdicts([both], load=1.6)
    assert refused[0].startswith("No verdict: the machine's load was 1.60")


def test_a_busy_machine_is_refused() -> None:
    report.check_load(1.5, allowed=False)
    report.check_load(3.0, allowed=True)
    with pytest.raises(ValueError, match=r"load is 3\.00.*--allow_load"):
        report.check_load(3.0, allowed=False)


def test_the_table_has_shares_of_the_ceiling_and_reasons() -> None:
    one = measured(result("bert_tf", [1.0, 2.0, 3.0]), result("torch", [], note="ended: no room"))
    ceiling = measured(
        dataclasses.replace(result("torch", [2.0]), units=2e12), kind="matmul_float32", work=0.0
    )
    known = report.ceilings([ceiling, one])
    assert known == {"matmul_float32": 1e12}
    lines = report.table(one, known).splitlines()
    assert "| bert_tf | float32 | 2 | 1 - 3 | 4 | 4 | 50.0% |" in lines[4]
    assert lines[5].endswith("| ended: no room |")


def test_json_can_be_read_back(tmp_path: pathlib.Path) -> None:
    both = measured(result("bert_tf", [1.0]), result("torch", [2.0]))
    report.write_json(tmp_path / "results.json", [both], {"load before": 0.0}, {"official": "no"})
    read = json.loads((tmp_path / "results.json").read_text())
    assert read["workloads"][0]["results"][1]["walls"] == [2.0]
    assert read["missing"] == {"official": "no"}
    assert len(read["verdicts"]) == 1


def test_a_picture_is_drawn(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("matplotlib")
    both = measured(result("bert_tf", [1.0, 1.5]), result("torch", [2.0, 2.5]))
    report.draw(tmp_path / "results.png", [both])
    assert (tmp_path / "results.png").read_bytes().startswith(b"\x89PNG")


def test_differences_are_shares_of_what_tells_rows_apart() -> None:
    exact = np.array([[1.0, 5.0], [3.0, 9.0]])
    assert driver.difference(exact, exact) == 0.0
    assert driver.difference(exact + 1.0, exact) == pytest.approx(1.0 / np.sqrt(2.5))
    assert driver.difference(np.array([1.1]), np.array([1.0])) == pytest.approx(0.1)
    assert driver.difference(np.array(1.1), np.array(1.0)) == pytest.approx(0.1)
    assert driver.difference(np.array([[3.3, 4.4]]), np.array([[3.0, 4.0]])) == pytest.approx(0.1)
    assert driver.difference(np.array([7, 8, 9]), np.array([9, 8, 7])) == 0.0
    assert driver.difference(np.array([7, 8]), np.array([7, 8, 8, 9])) == pytest.approx(0.5)


# ------------------------------------------------------------------------------- who takes part


def candidate(peer: str, wall: float, precision: str = "float32") -> driver.Candidate:
    workload = Workload("forward", "tiny", 4, 32, rows=4)
    settings = driver.Settings({}, 1, 1.0, pathlib.Path(), pathlib.Path())
    made = driver.Candidate(settings, peer, Job(workload, Variant(precision), 1))
    made.result.qualifying = {"wall": wall, "cpu": wall} if wall else {}
    return made


def test_the_best_of_each_library_and_one_near_to_it_take_part() -> None:
    all_of_them = [
        candidate("bert_tf", 1.0),
        candidate("torch", 5.0),
        candidate("torch", 6.0),
        candidate("torch", 5.5),
        candidate("torch", 7.0),
        candidate("official", 0.0),  # it failed
    ]
    chosen = [(c.peer, c.result.qualifying["wall"]) for c in driver.finalists(all_of_them)]
    assert sorted(chosen) == [("bert_tf", 1.0), ("torch", 5.0), ("torch", 5.5)]


def test_the_best_take_part_however_little_memory_there_is() -> None:
    all_of_them = [candidate("torch", 5.0), candidate("torch", 5.1), candidate("official", 9.0)]
    for each in all_of_them:
        each.result.peak_memory = 1 << 60
    assert driver.finalists(all_of_them) == [all_of_them[0], all_of_them[2]]


def test_what_is_far_behind_is_not_tried_at_other_sizes() -> None:
    stopped = candidate("torch", 0.0, "medium")
    stopped.result.note = "stopped: run took more than 30 s"
    broken = candidate("torch", 0.0, "bfloat16")
    broken.result.note = "stopped: prepare took more than 600 s"
    found = driver.hopeless(
        [candidate("torch", 1.0), candidate("torch", 4.1, "autocast"), stopped, broken]
    )
    assert sorted(found) == [("forward", "torch", "autocast"), ("forward", "torch", "medium")]


# --------------------------------------------------------------------------------------- processes


@dataclasses.dataclass(frozen=True)
class Fake(processes.Program):
    """A worker in one line."""

    code: str = ""

    def command(self) -> list[str]:
        return [sys.executable, "-c", self.code]


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import time; time.sleep(60)", "more than 1 s"),
        ("import sys; sys.exit('no memory left')", "ended with code 1: no memory left"),
        ('input(); print(\'{"error": "ValueError: bad"}\')', "ValueError: bad"),
    ],
)
def test_a_worker_that_fails_says_why(tmp_path: pathlib.Path, code: str, reason: str) -> None:
    worker = processes.Worker(Fake("fake", "", 1, code), tmp_path / "fake.log")
    try:
        with pytest.raises(processes.WorkerFailed, match=reason):
            worker.ask({"do": "run"}, limit=1.0 if "sleep" in code else 60.0)
    finally:
        worker.close()


def test_what_pip_could_not_install_is_told() -> None:
    code = "import sys; sys.exit('noise\\nERROR: no version of it here\\nmore noise')"
    with pytest.raises(environments.NotInstalled, match="ERROR: no version of it here"):
        environments.run([sys.executable, "-c", code])


def test_another_list_of_requirements_is_another_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folders = {environments.folder(peer) for peer in environments.PEERS}
    monkeypatch.setitem(environments.PEERS, "torch", ("torch.txt", "onnxruntime.txt", "torch.txt"))
    assert environments.folder("torch") not in folders


def settings_of(folder: pathlib.Path, *peers: str) -> driver.Settings:
    programs = {"bert_tf": processes.Program("bert_tf", sys.executable, 2)}
    for peer in peers:
        programs[peer] = processes.Program(peer, str(environments.make(peer)), 2)
    return driver.Settings(programs, 2, 300.0, folder / "logs", folder / "scratch")


def measure(
    folder: pathlib.Path, workload: Workload, peer: str, *variants: Variant
) -> list[Result]:
    settings = settings_of(folder, *({peer} - {"bert_tf"}))
    checkpoint, data = inputs.make_inputs(workload, folder / "inputs", "", "")
    job = Job(workload, Variant(), 2, checkpoint, data)
    return driver.measure(settings, job, {peer: list(variants)}, {})


def test_a_tiny_model_is_measured(tmp_path: pathlib.Path) -> None:
    workload = Workload("fine_tuning", "tiny", 4, 32, rows=12, lengths="sst2")
    (found,) = measure(tmp_path, workload, "bert_tf", Variant())
    assert found.note == ""
    assert len(found.walls) == 2
    assert found.difference is not None
    assert found.difference < 1e-4
    assert found.peak_memory > 1e8


@pytest.mark.slow
def test_exports_are_measured(tmp_path: pathlib.Path) -> None:
    workload = Workload("forward", "tiny", 4, 32, rows=12, lengths="sst2")
    variants = [Variant(), Variant("int8"), Variant("float32", worker="litert")]
    plain, int8, litert = measure(tmp_path, workload, "bert_tf", *variants)
    for result, tolerance in ((plain, 1e-4), (int8, 0.6), (litert, 1e-3)):
        assert len(result.walls) == 2 or result.note == "qualifying run alone"
        assert result.difference is not None
        assert result.difference < tolerance
    assert litert.peak_memory < plain.peak_memory  # nothing of TensorFlow is in that process


PEER_WORKLOADS = [
    Workload("forward", "tiny", 4, 32, rows=12, lengths="sst2"),
    Workload("fine_tuning", "tiny", 4, 32, rows=12, lengths="sst2"),
    Workload("pretraining", "tiny", 4, 32, rows=8, predictions=5),
]


@pytest.mark.slow
@pytest.mark.parametrize("peer", list(environments.PEERS))
@pytest.mark.parametrize("workload", PEER_WORKLOADS, ids=lambda workload: workload.kind)
def test_peers_compute_the_same(tmp_path: pathlib.Path, peer: str, workload: Workload) -> None:
    if not environments.is_made(peer):
        pytest.skip(f"no environment: python scripts/benchmark_peers/environments.py {peer}")
    if peer == "onnxruntime" and workload.kind != "forward":
        pytest.skip("onnxruntime does not train")
    (found,) = measure(tmp_path, workload, peer, Variant())
    assert found.note == ""
    assert found.difference is not None
    assert found.difference < 1e-3


# ------------------------------------------------------------------------------------- the script


def script(*flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "benchmark.py"), *flags]
    return subprocess.run(
        command,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_the_tokenizer_is_measured(tmp_path: pathlib.Path) -> None:
    (tmp_path / "book.txt").write_text("A good film.\r\n\r\nA bad\nfilm.\n\nCaf\u00e9.\n")
    output = tmp_path / "results"
    done = script(
        *(f"--output={output}", "--workloads=tokenizer", "--shapes=tiny", "--peers="),
        *(f"--vocab_file={CHECKPOINT}/vocab.txt", f"--text={tmp_path}/*.txt"),
        *("--rounds=1", "--allow_load"),
    )
    assert done.returncode == 0, done.stderr
    assert "pieces per second" in done.stdout
    read = json.loads((output / "results.json").read_text())
    (one,) = read["workloads"][0]["results"]
    assert one["difference"] == 0.0
    assert len(one["walls"]) == 1
    assert not list(output.glob("benchmark-*"))


def test_mistakes_end_in_one_paragraph(tmp_path: pathlib.Path) -> None:
    done = script(f"--output={tmp_path}", "--workloads=swimming", "--allow_load")
    assert done.returncode == 1
    assert "--workloads=swimming names nothing; there are" in done.stderr
    assert "Traceback" not in done.stderr

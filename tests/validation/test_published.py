"""Rows of published training steps: what becomes of a row, and what is said about one that cannot be expressed."""

import csv
import json
import re
from pathlib import Path

import pytest

from chinchilla_sim.cli import app
from chinchilla_sim.cluster.catalogue import find_device
from chinchilla_sim.errors import ScenarioError
from chinchilla_sim.validation.fitting import fit_sources
from chinchilla_sim.validation.ledger import CHUNK, ledger, predict_rows, regret
from chinchilla_sim.validation.left_out import leave_one_out
from chinchilla_sim.validation.published import HARDWARE, Constants, predict
from chinchilla_sim.validation.published_model import NotPredictedError

ROW = {
    "id": "a",
    "source_id": "s",
    "model_family": "gpt",
    "model_name": "m",
    "layers": "8",
    "hidden": "1024",
    "heads": "16",
    "kv_heads": "16",
    "ffn_hidden": "4096",
    "vocab": "50257",
    "seq_len": "1024",
    "n_experts": "",
    "moe_topk": "",
    "hardware": "A100-SXM-80GB",
    "n_gpus": "8",
    "gpus_per_node": "8",
    "interconnect": "NVLink3",
    "inter_node_gbps": "",
    "tp": "2",
    "pp": "2",
    "vpp": "1",
    "dp": "2",
    "cp": "1",
    "ep": "1",
    "zero_stage": "0",
    "sequence_parallel": "0",
    "recompute": "none",
    "micro_batch": "2",
    "global_batch": "32",
    "precision": "bf16",
    "pp_schedule": "",
    "optimizer": "adam",
    "other_config": "",
    "step_time_s_calc": "0.25",
    "quality": "A",
    "status": "ok",
    "peak_mem_gb": "",
    "mem_def": "",
}


def test_more_of_the_same_takes_longer() -> None:
    """Twice the batch, twice the layers, full recompute, slower GPUs: each takes longer; and memory follows."""
    step_s = predict(ROW).step_s
    for change in ({"global_batch": "64"}, {"layers": "16"}, {"recompute": "full"}, {"hardware": "V100-SXM2-32GB", "precision": "fp16"}):
        assert predict(ROW | change).step_s > step_s
    assert predict(ROW | {"recompute": "full"}).peak_bytes < predict(ROW).peak_bytes
    assert predict(ROW | {"zero_stage": "1"}).peak_bytes < predict(ROW).peak_bytes
    told = predict(ROW)
    assert told.fits and told.p5_s < told.step_s < told.p95_s


@pytest.mark.parametrize(
    "change",
    [
        {"model_family": "llama2", "model_name": "L", "kv_heads": "8"},
        {"model_family": "mpt"},
        {"model_family": "t5"},
        {"pp": "1", "dp": "4", "zero_stage": "3"},
        {"model_family": "bert", "seq_len": "128"},
        {"model_family": "transformer-xl"},
        {"model_family": "vit", "pp": "1", "dp": "4"},
        {"model_family": "cnn", "model_name": "ResNet-50", "tp": "1", "pp": "1", "dp": "8"},
        {"vpp": "2"},
        {"cp": "2", "dp": "1"},
        {"n_experts": "4", "moe_topk": "2", "model_family": "qwen3", "ep": "2"},
        {"n_gpus": "16", "dp": "4", "inter_node_gbps": "400"},
    ],
)
def test_all_families_and_ways_to_split_are_predicted(change: dict[str, str]) -> None:
    """Seconds and bytes of every kind of row."""
    told = predict(ROW | change)
    assert 1e-3 < told.step_s < 10 and told.peak_bytes > 1e8


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"hardware": "abacus"}, "abacus is not in the catalogue"),
        ({"model_family": "rnn"}, "no formula for models of family rnn"),
        ({"precision": "nvfp4"}, "precision nvfp4"),
        ({"global_batch": "", "micro_batch": ""}, "neither global_batch nor micro_batch is stated"),
        ({"dp": "8"}, "more than the 8 GPUs"),
        ({"layers": ""}, "layers of the model are not stated"),
        ({"n_gpus": "many"}, "'many', not a number"),
        ({"pp": "16", "dp": "1", "tp": "1", "n_gpus": "16"}, "8 layers cannot be divided over 16 stages"),
    ],
)
def test_what_cannot_be_expressed_says_why(change: dict[str, str], why: str) -> None:
    """No guess where the row does not say."""
    with pytest.raises(NotPredictedError, match=why):
        predict(ROW | change)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Ten rows of one source that differ in their plan, and one that cannot be predicted."""
    rows = [
        ROW | {"id": f"r{i}", "tp": tp, "pp": pp, "dp": str(8 // int(tp) // int(pp)), "step_time_s_calc": str(0.2 + 0.01 * i)}
        for i, (tp, pp) in enumerate(
            [("1", "1"), ("1", "2"), ("2", "1"), ("2", "2"), ("4", "1"), ("1", "4"), ("4", "2"), ("2", "4"), ("8", "1"), ("1", "8")]
        )
    ]
    path = tmp_path / "rows.csv"
    with path.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, list(ROW))
        writer.writeheader()
        writer.writerows([*rows, ROW | {"id": "no", "precision": "nvfp4"}])
    return path


def test_command_writes_a_line_per_row(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The columns that DESIGN names, empty where there is no prediction; the same file gives the same bytes."""
    texts = []
    for name in ("a.csv", "b.csv"):
        app(["validate", "published", str(file), "-o", str(tmp_path / name), "--json"], exit_on_error=False, result_action="return_value")
        texts.append((tmp_path / name).read_text())
    found = json.loads(capsys.readouterr().out.split("\n}\n{")[0] + "\n}")
    assert (found["rows"], found["predicted"]) == (11, 10) and found["regret"]["groups"] == 1
    assert texts[0] == texts[1]
    lines = list(csv.DictReader(texts[0].splitlines()))
    asked = ["id", "simulated_step_s", "p5_s", "p95_s", "simulated_peak_memory_bytes", "fits", "not_predicted_because"]
    assert list(lines[0]) == [*asked, "error", "memory_error", "plan_group", "regret_of_group"]
    assert {line["plan_group"] for line in lines[:-1]} == {"0"} and float(lines[0]["error"]) == pytest.approx(
        float(lines[0]["simulated_step_s"]) / 0.2 - 1
    )
    assert [line["id"] for line in lines] == [*(f"r{i}" for i in range(10)), "no"]
    assert lines[-1]["simulated_step_s"] == "" and "fp4" in lines[-1]["not_predicted_because"]


def test_rows_end_when_asked_to(file: Path) -> None:
    """Ctrl-C leaves the rows so far: at least one, those before the question was answered with yes."""
    answers = iter([False, False, True])
    assert [one.row["id"] for one in predict_rows(file, stop=lambda: next(answers))] == ["r0", "r1", "r2"]
    assert len(predict_rows(file, stop=lambda: True)) == 1


def test_two_processes_say_the_same(file: Path, tmp_path: Path) -> None:
    """More rows than one process takes at a time, some without a prediction: the same rows in the same order, also when stopped."""
    header, *lines = file.read_text().splitlines()
    many = tmp_path / "many.csv"
    many.write_text("\n".join([header, *(CHUNK * lines)]) + "\n")
    alone, shared = predict_rows(many), predict_rows(many, jobs=2)
    assert shared == alone and {one.prediction is None for one in alone} == {True, False}
    answers = iter([False] * 3 + [True])
    assert predict_rows(many, stop=lambda: next(answers), jobs=2) == alone[:4]


def test_ledger_adds_up(file: Path) -> None:
    """Mean, bias and regret of ten rows, recomputed here."""
    predicted = predict_rows(file)
    source, overall = ledger(predicted)
    errors = [one.prediction.step_s / float(one.row["step_time_s_calc"]) - 1 for one in predicted if one.prediction]
    assert source.scored == overall.scored == 10
    assert source.mean == overall.mean == pytest.approx(sum(map(abs, errors)) / 10)
    chosen = min((one for one in predicted if one.prediction), key=lambda one: one.prediction.step_s if one.prediction else 0.0)
    assert regret(predicted) == (
        1,
        pytest.approx(float(chosen.row["step_time_s_calc"]) / 0.2 - 1),
        pytest.approx(float(chosen.row["step_time_s_calc"]) / 0.2 - 1),
    )


def test_calibration_finds_what_made_the_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rows made with kernels at 0.6 of their speed: fitted to eight of them, the others are predicted far better than before."""
    made = Constants(0.6, 1.0, 55e-6, 1e-3, 1.0, 0.0)
    shapes = [(hidden, size, tensor) for hidden in ("2048", "4096") for size in ("2", "4", "8") for tensor in ("1", "2", "4")]
    rows = [
        ROW
        | {
            "id": f"{h}-{m}-{t}",
            "hidden": h,
            "ffn_hidden": "",
            "micro_batch": m,
            "tp": t,
            "pp": "1",
            "dp": str(8 // int(t)),
            "global_batch": "64",
        }
        for h, m, t in shapes
    ]
    path = tmp_path / "rows.csv"
    with path.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, list(ROW))
        writer.writeheader()
        writer.writerows([row | {"step_time_s_calc": str(predict(row, made).step_s)} for row in rows])
    (fit,) = fit_sources(predict_rows(path), 8)
    assert (fit.fitted_rows, fit.scored_rows) == (8, 10)
    assert fit.shipped_error > 0.2 and fit.fitted_error < 0.05
    assert fit.constants.sustained_share == pytest.approx(0.6, rel=0.1)
    app(["validate", "published", str(path), "--calibrate", "8", "--json"], exit_on_error=False, result_action="return_value")
    (told,) = json.loads(capsys.readouterr().out)["calibrated"]
    assert told["fitted_error"] == pytest.approx(fit.fitted_error)


def test_wrong_files_are_named(tmp_path: Path) -> None:
    """A file that is not there, and one without the columns."""
    with pytest.raises(ScenarioError, match="cannot be read"):
        predict_rows(tmp_path / "none.csv")
    (tmp_path / "bad.csv").write_text("id\n1\n")
    with pytest.raises(ScenarioError, match="there is no such column"):
        predict_rows(tmp_path / "bad.csv")


@pytest.mark.parametrize(
    ("hardware", "name"),
    [
        ("GB200 NVL72", "gb200"),
        ("NVIDIA GB300", "gb300"),
        ("8xB200", "b200-sxm"),
        ("DGX B200 180GB", "b200-sxm"),
        ("H200-SXM-141GB", "h200-sxm"),
        ("H200 NVL", "h200-nvl"),
        ("GH200 96GB", "gh200-96gb"),
        ("H100 (500 W, 96 GB HBM2e)", "h100-sxm-500w"),
        ("H100-500W", "h100-sxm-500w"),
        ("H100 NVL 94GB", "h100-nvl"),
        ("H100-80GB NVLink", "h100-sxm-80gb"),
        ("H800-SXM-80GB", "h800-sxm-80gb"),
        ("H20 96GB", "h20-sxm-96gb"),
        ("A100-PCIE-40GB", "a100-pcie-40gb"),
        ("4x A10G", "a10g"),
        ("A10", "a10"),
        ("A40 48GB", "a40"),
        ("L40", "l40"),
        ("NVIDIA L40S", "l40s"),
        ("8xL4", "l4"),
        ("Tesla T4", "t4"),
        ("Tesla V100-PCIE-32GB", "v100-pcie-32gb"),
        ("V100 PCIe 16GB", "v100-pcie-16gb"),
        ("V100S-PCIE-32GB", "v100s-pcie-32gb"),
        ("Titan V", "titan-v"),
        ("GeForce GTX 1080 Ti", "gtx-1080-ti"),
        ("RTX3080-10GB", "rtx-3080"),
        ("GeForce RTX 3090 Ti", "rtx-3090-ti"),
        ("RTX 4080 16GB", "rtx-4080"),
        ("RTX 5090", "rtx-5090"),
        ("RTX A5000", "rtx-a5000"),
        ("RTXA6000", "rtx-a6000"),
        ("Quadro RTX 6000", "quadro-rtx-6000"),
        ("RTX 6000 Ada Generation", "rtx-6000-ada"),
        ("MI300X", "mi300x"),
        ("AMD Instinct MI325X", "mi325x"),
        ("MI250X", "mi250x-gcd"),
        ("MI250", "mi250-gcd"),
        ("TPUv5e", "tpu-v5e"),
        ("TPU v5p-128", "tpu-v5p"),
        ("TPU-v4", "tpu-v4"),
        ("Trn2", "trainium2-core"),
        ("Trainium1", "trainium1-core"),
        ("Gaudi 3", "gaudi3"),
    ],
)
def test_spellings_of_hardware(hardware: str, name: str) -> None:
    """However a table spells a device, its row is of the catalogue's."""
    assert device_of(hardware) == name
    assert find_device(name, "bf16", "here")


def test_other_hardware_is_not_mapped() -> None:
    """A relative of a known device is another device."""
    for hardware in ("RTX 3080 Ti", "RTX 4070 Ti", "RTX 4090 D", "MI300A", "RTX 2080 Super", "A16", "TPU v4i"):
        assert device_of(hardware) is None


def device_of(hardware: str) -> str | None:
    """The catalogue's name of a spelling."""
    return next((name for pattern, name in HARDWARE if re.search(pattern, hardware, re.IGNORECASE)), None)


def test_fp8_speeds_up_products_with_weights() -> None:
    """On an H100 a step in fp8 lies between half of the one in bf16 and all of it; an A100 has no fp8 and says so."""
    steps = [predict(ROW | {"hardware": "H100-SXM", "hidden": "8192", "heads": "64", "precision": text}).step_s for text in ("bf16", "fp8")]
    assert 0.5 * steps[0] < steps[1] < 0.95 * steps[0]


def test_a_source_left_out_is_scored_with_the_constants_of_the_others(tmp_path: Path) -> None:
    """Two sources made with slow products: the fit to the one finds them for the other, and its interval covers it."""
    made = Constants(0.5, 1.0, 55e-6, 1e-3, 1.0, 0.0)
    shapes = [(hidden, size) for hidden in ("2048", "4096", "6144") for size in ("2", "4", "8")]
    path = tmp_path / "rows.csv"
    rows = [
        ROW | {"id": f"{source}{h}-{m}", "source_id": source, "hidden": h, "ffn_hidden": "", "micro_batch": m}
        | {"tp": "1", "pp": "1", "dp": "8", "global_batch": "64"}
        for source in ("a", "b") for h, m in shapes
    ]  # fmt: skip
    with path.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, list(ROW))
        writer.writeheader()
        noise = [0.85 + 0.06 * (number % 6) for number in range(len(rows))]
        writer.writerows([row | {"step_time_s_calc": str(predict(row, made).step_s * off)} for row, off in zip(rows, noise, strict=True)])
    results = leave_one_out(predict_rows(path))
    assert [one.source for one in results] == ["a", "b"]
    for one in results:
        assert one.refitted_error < one.shipped_error / 2 and one.inside >= 0.7
        assert one.constants.sustained_share == pytest.approx(0.5, rel=0.2)

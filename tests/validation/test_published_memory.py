"""Memory of published rows: what each kind of software holds, in whose definition, and the ledger of what fits."""

import pytest

from chinchilla_sim.cluster.topology import CONTEXT_BYTES
from chinchilla_sim.validation.ledger import PredictedRow
from chinchilla_sim.validation.memory_ledger import memory_ledger
from chinchilla_sim.validation.published import Prediction, predict
from chinchilla_sim.validation.published_memory import COMMUNICATOR_BYTES

LLAMA = {
    "id": "a", "source_id": "s", "model_family": "llama2", "model_name": "m", "layers": "4", "hidden": "1024", "heads": "16",
    "kv_heads": "16", "ffn_hidden": "4096", "vocab": "32000", "seq_len": "1024",
    "n_experts": "", "moe_topk": "", "hardware": "A100-SXM-80GB", "n_gpus": "1",
    "gpus_per_node": "8", "interconnect": "NVLink3", "inter_node_gbps": "", "tp": "1", "pp": "1", "vpp": "1", "dp": "1", "cp": "1",
    "ep": "1", "zero_stage": "0", "sequence_parallel": "0",
    "recompute": "none", "micro_batch": "1", "global_batch": "1", "precision": "bf16",
    "pp_schedule": "", "optimizer": "adam", "other_config": "", "mem_def": "max_memory_allocated",
}  # fmt: skip
PARAMETERS = 2 * 32000 * 1024 + 4 * (4 * 1024**2 + 3 * 1024 * 4096 + 2 * 1024) + 1024
TOKENS = 1024


def peak(**change: str) -> float:
    """Reported bytes of the row with some columns changed."""
    return predict(LLAMA | change).peak_bytes


def test_pure_half_precision_has_no_masters() -> None:
    """8 B per parameter instead of 16."""
    assert peak() - peak(precision="bf16 (pure)") == pytest.approx(8 * PARAMETERS)


def test_autocast_keeps_fp32_weights_and_a_cast_copy() -> None:
    """4 + 4 + 8 as in fp32, and 2 for the cache: 2 B per parameter more than mixed precision with masters."""
    assert peak(precision="fp16 AMP") - peak(precision="fp16") == pytest.approx(2 * PARAMETERS)


def test_plain_data_parallelism_adds_buckets() -> None:
    """One copy of the gradients (Li et al. 2020)."""
    assert peak(dp="2", n_gpus="2", global_batch="2") - peak() == pytest.approx(2 * PARAMETERS)


def test_zero_three_divides_state_and_gathers_units() -> None:
    """16 B per parameter over 8; of the root unit weights and gradients, of a layer two copies of weights and one of gradients."""
    root = 2 * 32000 * 1024 + 1024
    layer = (PARAMETERS - root) / 4
    parted = peak(dp="8", n_gpus="8", global_batch="8", zero_stage="3")
    assert peak() - parted == pytest.approx(16 * PARAMETERS * 7 / 8 - 2 * (2 * root + 3 * layer))


def test_the_device_shows_its_context_too() -> None:
    """nvidia-smi against the program's own figure, on one device and on two."""
    assert peak(mem_def="GB, nvidia-smi") - peak() == pytest.approx(CONTEXT_BYTES)
    two = {"tp": "2", "n_gpus": "2"}
    assert peak(mem_def="", **two) - peak(**two) == pytest.approx(CONTEXT_BYTES + 2 * COMMUNICATOR_BYTES)


def test_flattening_optimizers_need_their_step() -> None:
    """ZeRO 1 on one device with full recompute: 16, flat gradients 2 + 2, fp32 gradients 4, torch's update 8."""
    assert peak(zero_stage="1", recompute="full", seq_len="64") == pytest.approx(32 * PARAMETERS)


def test_a_fused_loss_makes_its_gradient_only() -> None:
    """12 B per logit become 4."""
    pure = {"precision": "bf16 (pure)"}
    assert peak(**pure) - peak(**pure, other_config="flash attention") == pytest.approx(8 * 32000 * TOKENS)


def test_code_decides_what_is_kept() -> None:
    """Compiled code keeps less, eager code more than the graph's fused kernels."""
    assert peak(other_config="torch.compile") < peak() < peak(other_config="eager")


def test_interleaved_and_zero_bubble_schedules_hold_more() -> None:
    """1F1B holds least; interleaving adds (p-1)/(pv), ZB-2p nearly doubles."""
    row = {"pp": "4", "n_gpus": "4", "layers": "8", "micro_batch": "4", "global_batch": "64", "vocab": "512"}
    plain = peak(**row)
    assert plain < peak(**row, vpp="2") < peak(**row, pp_schedule="ZB-2p")
    assert plain <= peak(**row, pp_schedule="ZB-1p") < peak(**row, pp_schedule="ZB-2p")


def found(source: str, peak_gb: float, fits: bool, measured: str = "", status: str = "ok", quality: str = "A") -> PredictedRow:
    """A predicted row as the ledger reads it."""
    row = {"source_id": source, "peak_mem_gb": measured, "status": status, "quality": quality}
    return PredictedRow(row, Prediction(1.0, peak_gb * 1e9, fits, (1.0, 1.0)), "")


def test_ledger_counts_every_outcome() -> None:
    """Two sources by hand: 10 and 30 % of 10 GB off in one, 50 % of 2 GB in the other; every kind of plan once; C is left out."""
    rows = [
        found("a", 11.0, True, "10"), found("a", 7.0, True, "10"), found("a", 9.0, True, status="OOM"),
        found("a", 9.0, False, status="OOM"), found("b", 3.0, False, "2"),
        found("b", 9.0, True, "1", quality="C"), found("quiet", 1.0, True),
    ]  # fmt: skip
    first, second, overall = memory_ledger(rows)
    assert (first.source, first.scored, first.mean, first.mean_gb) == ("a", 2, pytest.approx(0.2), pytest.approx(2.0))
    assert (first.bias, second.bias) == (pytest.approx(-0.1), pytest.approx(0.5))
    assert (first.fitting, first.missed, first.false_alarms, first.refused) == (2, 1, 0, 1)
    assert (second.fitting, second.missed, second.false_alarms, second.refused) == (0, 0, 1, 0)
    assert (overall.scored, overall.mean, overall.mean_gb) == (3, pytest.approx(0.35), pytest.approx(1.5))
    assert (overall.fitting, overall.missed, overall.false_alarms, overall.refused) == (3, 1, 1, 1)
    assert memory_ledger([]) == []

"""Counting tensors: by hand on tensors of known size, and what the kernel says about the process."""

import pytest
import torch
from torch import nn

from chinchilla_sim.runtime.launching.launch import COUNT_VARIABLE
from chinchilla_sim.runtime.record.memory import (
    COUNTED_STEP,
    MemoryProbe,
    count_allocations,
    optimizer_tensors,
    resident_bytes,
    storage_bytes,
)

MB = 2**20


def test_peak_is_what_was_there_at_once() -> None:
    """Two tensors of 1 MB one after the other are 1 MB, both at once 2 MB; what was there before does not count."""
    before = torch.zeros(MB // 4)

    def one_by_one() -> int:
        for _ in range(2):
            torch.zeros(MB // 4)
        return 7

    def at_once() -> None:
        kept = [torch.zeros(MB // 4) for _ in range(2)]
        before.copy_(kept[0])

    assert count_allocations(one_by_one) == (7, MB)
    assert count_allocations(at_once)[1] == 2 * MB


def test_saved_activations_and_gradients_count() -> None:
    """Two layers of 256 x 256 at batch 256 hold both outputs and, backwards, gradients of weights and of what is between."""
    model = nn.Sequential(nn.Linear(256, 256, bias=False), nn.Tanh(), nn.Linear(256, 256, bias=False))
    inputs, size = torch.randn(256, 256), 4 * 256 * 256

    def forward() -> torch.Tensor:
        return model(inputs).sum()

    loss, forward_bytes = count_allocations(forward)
    # Three outputs at least (the first one frees itself behind tanh), and the scalar.
    assert 2 * size < forward_bytes < 3.1 * size
    _, backward_bytes = count_allocations(loss.backward)
    assert 2 * size <= backward_bytes <= 5 * size
    assert model[0].weight.grad is not None


def test_optimizer_state_counts_once() -> None:
    """Adam holds two moments per weight; views of one storage are one storage."""
    model = nn.Linear(64, 64, bias=False)
    optimizer = torch.optim.Adam(model.parameters())
    assert storage_bytes(optimizer_tensors(optimizer)) == 0
    model(torch.randn(2, 64)).sum().backward()
    optimizer.step()
    weights = 4 * 64 * 64
    assert storage_bytes(optimizer_tensors(optimizer)) == pytest.approx(2 * weights, abs=16)
    assert storage_bytes([model.weight, model.weight.view(-1), model.weight[:3]]) == weights


def test_probe_counts_one_warm_up_step_where_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the third step is counted, on top of what is held; without the launcher's word none is."""

    def step() -> float:
        return float(torch.ones(MB // 4).sum()) / (MB // 4)

    monkeypatch.setenv(COUNT_VARIABLE, "1")
    probe = MemoryProbe()
    peaks = []
    for _ in range(COUNTED_STEP + 2):
        assert probe.play(step, lambda: 100.0) == 1.0
        peaks.append(probe.to_dict()["tensor_bytes"])
    assert peaks[:COUNTED_STEP] == [0.0] * COUNTED_STEP
    assert peaks[COUNTED_STEP] == peaks[-1] and MB + 100 <= peaks[-1] <= MB + 1000
    monkeypatch.delenv(COUNT_VARIABLE)
    silent = MemoryProbe()
    for _ in range(COUNTED_STEP + 2):
        silent.play(step, lambda: 100.0)
    assert silent.to_dict()["tensor_bytes"] == 0.0


def test_process_has_a_largest_resident_set() -> None:
    """VmHWM is never below what is resident, and grows with what is touched."""
    now, most = resident_bytes()
    assert most >= now > 0
    touched = torch.ones(int(most / 4) + 16 * MB)
    assert resident_bytes()[1] >= most + 32 * MB
    del touched

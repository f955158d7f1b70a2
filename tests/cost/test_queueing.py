"""Waiting lines by formula."""

import pytest

from chinchilla_sim.cost.queueing import queue_wait_s


@pytest.mark.parametrize("load", [0.1, 0.5, 0.9])
def test_random_service_waits_twice_as_long_as_constant_service(load: float) -> None:
    """M/M/1 waits load / (1 - load) service times, M/D/1 half of that."""
    assert queue_wait_s(load / 2, 2.0, variation=1.0) == pytest.approx(2.0 * load / (1 - load))
    assert queue_wait_s(load / 2, 2.0) == pytest.approx(load / (1 - load))

"""What emulated links take: the line through two message sizes, and a measurement where this machine can make one."""

import pytest

from chinchilla_sim.runtime.emulated.namespaces import why_unavailable
from chinchilla_sim.runtime.measurement.emulation import MESSAGES, fit_links, measure_emulation


def test_two_sizes_give_what_a_message_takes_and_what_a_byte_takes() -> None:
    """Messages of 1 and 101 bytes take the fabric 3 and 203 s: 2 s a byte and 1 s a message. Both ends together take 1 s either way."""
    usual, outlier = {"fabric_s": 203.0, "ends_s": 1.0}, {"fabric_s": 900.0, "ends_s": 9.0}
    rounds = {1: [{"fabric_s": 3.0, "ends_s": 1.0}] * 3, 101: [usual, outlier, usual]}
    links = fit_links(rounds)
    assert (links.fabric_s_per_byte, links.fabric_s_per_message) == pytest.approx((2.0, 1.0))
    assert (links.socket_s_per_byte, links.socket_s_per_message) == pytest.approx((0.0, 0.5))


def test_noise_gives_no_negative_seconds() -> None:
    """Where the larger messages took less, a byte takes nothing."""
    links = fit_links({1: [{"fabric_s": 3.0, "ends_s": 1.0}], 2: [{"fabric_s": 1.0, "ends_s": 1.0}]})
    assert (links.fabric_s_per_byte, links.fabric_s_per_message) == (0.0, 3.0)


@pytest.mark.skipif(why_unavailable() is not None, reason=f"no emulated links: {why_unavailable()}")
def test_this_machine_takes_time_for_its_links() -> None:
    """The fabric takes time for bytes and messages; a message takes it longer than a byte."""
    links = measure_emulation()
    assert links.fabric_s_per_byte > 0
    assert links.fabric_s_per_message > links.fabric_s_per_byte
    assert len(MESSAGES) == 2

"""The speed table: its parts run and count what they say; how fast they are is for `chinchilla bench simulator`."""

import pytest

from chinchilla_sim.report.tables.machine import speed_table
from chinchilla_sim.simulator.activities import makespan_s
from chinchilla_sim.simulator.benchmark import Figure, folded_pipeline, play_permutations, random_batch
from chinchilla_sim.simulator.replay import replay


def test_flows_of_permutations_all_arrive() -> None:
    """Both kinds of rounds end."""
    assert play_permutations(4, 3) > 0
    assert play_permutations(4, 3, pauses=True) > 0


def test_folded_pipeline_takes_the_textbook_step() -> None:
    """8 equal stages, 16 microbatches: (m + p - 1) (F + B with their collectives), transfers, exchange and update."""
    graph = folded_pipeline(tensor=2, ranks=8, replicas=6, microbatches=16)
    transfer_s = 2e-5 + 2e6 / 2 / 2.5e10
    expected = 23 * (0.012 + 0.022) + 0.001 + 0.1 + 0.05
    assert expected < makespan_s(replay(graph)) < expected + 16 * 2 * 7 * transfer_s


def test_random_plans_are_plans() -> None:
    """Seconds stand where stages are."""
    batch = random_batch(50, 6)
    exists = batch.forward_s > 0
    assert (exists.sum(axis=1) == batch.stage_counts).all()
    assert (batch.busy_s[0][~exists] == 0).all()


@pytest.mark.parametrize(("value", "target", "at_most", "reached"), [(2, 1, False, "yes"), (2, 3, False, "no"), (2, 3, True, "yes")])
def test_table_says_whether_a_target_is_reached(value: float, target: float, at_most: bool, reached: str) -> None:
    """More is better, unless it says at most."""
    assert speed_table([Figure("x", value, "s", target, at_most)]).rows[0][-1] == reached

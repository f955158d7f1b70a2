"""[job]: its length and its requests, and what is refused."""

import json

import pytest

from chinchilla_sim.errors import ScenarioError
from chinchilla_sim.planner.serving import ClosedLoop, demand_of, load_of
from chinchilla_sim.scenario.load import parse_scenario
from tests.scenario.tables import SERVING, Tables, mistakes_of, tables


@pytest.mark.parametrize(
    ("job", "mistake"),
    [
        ({}, "job.global_batch_size: is missing; write for example global_batch_size = 128"),
        ({"global_batch_size": "64"}, 'job.global_batch_size: must be a whole number, not "64"; write for example global_batch_size = 128'),
        ({"global_batch_size": True}, "job.global_batch_size: must be a whole number, not true; write for example global_batch_size = 128"),
        ({"global_batch_size": 64, "data": 3}, 'job.data: must be a text in quotes, not 3; write for example data = "digits"'),
        (
            {"global_batch_size": 64, "learning_rate": 0},
            "job.learning_rate: must be more than 0, not 0; write for example learning_rate = 0.001",
        ),
        (
            {"global_batch_size": 64, "momentum": 0.9},
            'job.momentum: is not used by optimizer adam; write optimizer = "sgd", or leave momentum out',
        ),
    ],
)
def test_a_wrong_job_says_what_is_expected(job: Tables, mistake: str) -> None:
    """Types are not guessed: a number in quotes is a text, true is no number."""
    assert mistakes_of(tables(job=job)) == [mistake]


def test_a_load_is_a_rate_of_requests() -> None:
    """Requests per second inside, whatever the file counts by; and back to the last bit."""
    scenario = parse_scenario(tables(job=SERVING, search={"objective": "latency", "maximum_latency": "50 ms"}), "x")
    assert (scenario.job.arrivals_per_s, scenario.search.maximum_latency_s) == (1.5, 0.05)
    assert parse_scenario(json.loads(json.dumps(scenario.to_dict())), "plan.json") == scenario


def test_the_first_of_steps_and_samples_ends_the_job() -> None:
    """Both may be stated; without either only epochs end it."""
    for job, steps in (({"steps": 5}, 5), ({"target_samples": 1280}, 10), ({"steps": 5, "target_samples": 1280}, 5), ({}, None)):
        assert parse_scenario(tables(job={"global_batch_size": 128, **job}), "x").job.total_steps == steps


def test_requests_come_in_one_way() -> None:
    """At random or in a closed loop; both are for inference, and one of them is enough."""
    for job, words in (
        ({"concurrency": 4}, "job.concurrency: is for inference"),
        ({**SERVING, "concurrency": 4}, "job.concurrency: is given beside arrival_rate"),
    ):
        with pytest.raises(ScenarioError, match=words):
            parse_scenario(tables(job={"global_batch_size": 8, **job}), "x")
    scenario = parse_scenario(tables(job={"global_batch_size": 8, "kind": "inference", "concurrency": 4}), "x")
    assert demand_of(scenario.job) == ClosedLoop(4) and load_of(scenario.job) is None

"""[search]: limits, lists and codecs, and what is refused."""

from typing import get_args

import pytest

from chinchilla_sim.cost.codec import CODECS
from chinchilla_sim.scenario.load import parse_scenario
from chinchilla_sim.scenario.search import Codec
from tests.scenario.tables import SERVING, Tables, mistakes_of, tables


@pytest.mark.parametrize(
    ("search", "mistake"),
    [
        (
            {"minimum_ranks": 4, "maximum_ranks": 2},
            "search.minimum_ranks: is 4, more than maximum_ranks = 2; write a maximum_ranks that is at least minimum_ranks",
        ),
        (
            {"stage_replicas": "free", "schedules": ["zb-h1"]},
            'search.stage_replicas: is "free", but schedules has neither 1f1b nor gpipe; '
            'add one of them, or write stage_replicas = "equal"',
        ),
        (
            {"stage_replicas": "unequal"},
            'search.stage_replicas: must be "equal" or "free", not "unequal"; did you mean \'equal\'?',
        ),
        (
            {"schedules": ["1f1B"]},
            'search.schedules.0: must be "gpipe", "1f1b", "looped-bfs", "interleaved-1f1b", "zb-h1", "zb-h2", "interleaved-zb", '
            '"zb-1p", "zb-2p", "zb-v" or "dualpipe-v", not "1f1B"; did you mean \'1f1b\'?',
        ),
        (
            {"gradient_codecs": []},
            'search.gradient_codecs: needs at least 1 entry, has 0; write for example gradient_codecs = ["none", "fp16"]',
        ),
        (
            {"activation_codecs": ["none", "top-k"]},
            'search.activation_codecs.1: "top-k" is for gradients only: what it leaves out is made up for in later steps; '
            "write none, fp16, bf16 or int8 here, and allow it in gradient_codecs",
        ),
        (
            {"local_steps": [1, 4], "variants": [{"prune": 0.5}, {"sparsity": 0.9}]},
            "search.variants.1.sparsity: has zeros that all replicas train around, but with search.local_steps each has weights "
            "of its own; leave one of the two out",
        ),
        (
            {"microbatch_counts": [1, 0]},
            "search.microbatch_counts.1: must be at least 1, not 0; write for example microbatch_counts = [1, 4]",
        ),
    ],
)
def test_a_wrong_search_is_refused_with_a_cure(search: Tables, mistake: str) -> None:
    """Limits fit together and lists hold known names and counts."""
    assert mistakes_of(tables(search=search)) == [mistake]


def test_every_gradient_codec_can_be_allowed() -> None:
    """The scenario knows the codecs that have prices, each by its name."""
    assert set(get_args(Codec)) == set(CODECS)
    found = parse_scenario(tables(search={"gradient_codecs": sorted(CODECS)}), "x")
    assert found.search.gradient_codecs == tuple(sorted(CODECS))


@pytest.mark.parametrize(
    ("job", "search", "mistake"),
    [
        (
            {**SERVING, "kind": "training"},
            {},
            'job.arrival_rate: is for inference; nobody waits for a step of training; write kind = "inference"',
        ),
        (
            SERVING,
            {"stage_replicas": "free", "executable": False},
            'search.stage_replicas: is "free", but requests go through replicas of the whole model; '
            'leave it out, or write stage_replicas = "equal"',
        ),
        ({**SERVING, "arrival_rate": "5"}, {}, 'job.arrival_rate: "5" has no unit; write for example "200 requests/s"'),
        (
            {"global_batch_size": 8},
            {"objective": "latency"},
            'search.objective: is about requests, and job.arrival_rate is missing; write for example arrival_rate = "200 requests/s"',
        ),
        (
            {"global_batch_size": 8},
            {"maximum_latency": "1 ms"},
            'search.maximum_latency: is about requests, and job.arrival_rate is missing; write for example arrival_rate = "200 requests/s"',
        ),
    ],
)
def test_latency_needs_requests_and_requests_need_inference(job: Tables, search: Tables, mistake: str) -> None:
    """Each half without the other is refused with what to write."""
    assert mistakes_of(tables(job=job, search=search)) == [mistake]


def test_limits_of_the_whole_job_need_its_length() -> None:
    """A deadline or budget without steps is a mistake with its cure; a limit per step or sample is none; limits have units."""
    cure = "write job.target_samples = 1000000, or job.steps, or limit one step by search.maximum_step_time"
    assert mistakes_of(tables(search={"deadline": "7 d", "budget": "100 USD"})) == [
        f"search.{key}: is for the whole job, whose steps are not stated; {cure}" for key in ("deadline", "budget")
    ]
    parsed = parse_scenario(tables(search={"maximum_step_time": "1 ms", "maximum_cost_per_sample": "0.001 USD"}), "x").search
    assert (parsed.maximum_step_time_s, parsed.maximum_cost_per_sample_usd, parsed.deadline_s) == (0.001, 0.001, None)
    job = {"global_batch_size": 128, "target_samples": 1000}
    scenario = parse_scenario(tables(job=job, search={"deadline": "7 d", "budget": "100 USD"}), "x")
    assert (scenario.search.deadline_s, scenario.search.budget_usd, scenario.job.total_steps) == (604800, 100, 8)
    assert parse_scenario(scenario.to_dict(), "x") == scenario
    (wrong,) = mistakes_of(tables(job=job, search={"budget": 100}))
    assert wrong.startswith("search.budget: 100 has no unit")
    assert mistakes_of(tables(job=job, search={"deadline": "0 s"})) == [
        'search.deadline: must be more than 0, not "0 s"; write for example "7 d"'
    ]


@pytest.mark.parametrize("shape", [{"graph": "g.txt", "format": "pipedream"}, {"graph": "g.json", "format": "piper"}])
def test_variants_need_shapes(shape: dict[str, str]) -> None:
    """A graph file of times alone cannot be made smaller; one with operands may."""
    (mistake,) = mistakes_of(tables(model=shape, search={"variants": [{"prune": 0.5}]}))
    assert mistake.startswith(f'search.variants: makes smaller variants, but a graph file of format "{shape["format"]}" does not say')
    assert parse_scenario(tables(model=shape, search={"variants": []}), "x").search.variants == ()
    assert len(parse_scenario(tables(model=shape | {"format": "onnx"}, search={"variants": [{"prune": 0.5}]}), "x").search.variants) == 1


def test_a_floor_under_the_accuracy_allows_all_codecs_and_survives_plan_json() -> None:
    """Lists that are not given mean all codecs then; a scenario read back from its tables is the same, narrowed lists included."""
    open_lists = parse_scenario(tables(search={"max_accuracy_drop": 0.01}), "x")
    assert set(open_lists.search.gradient_codecs) == set(CODECS)
    narrowed = parse_scenario(tables(search={"max_accuracy_drop": 0.01, "gradient_codecs": ["int8"]}), "x")
    assert narrowed.search.gradient_codecs == ("int8",)
    for scenario in (open_lists, narrowed):
        assert parse_scenario(scenario.to_dict(), "plan.json") == scenario


@pytest.mark.parametrize(
    ("job", "search", "mistake"),
    [
        ({}, {"max_accuracy_drop": 5}, "search.max_accuracy_drop: must be less than 1, not 5; write for example max_accuracy_drop = 0.005"),
        (
            {"kind": "inference"},
            {"objective": "time_to_accuracy"},
            'search.objective: is about training, and the job is inference; write objective = "latency" or "step_time"',
        ),
        ({"target_accuracy": 0.9, "target_loss": 0.1}, {}, "job.target_loss: is given beside target_accuracy; leave one out"),
    ],
)
def test_a_wrong_accuracy_says_what_is_expected(job: Tables, search: Tables, mistake: str) -> None:
    """A share is below 1; only training has steps to a target, of which there is one."""
    assert mistakes_of(tables(job={"global_batch_size": 8, **job}, search=search)) == [mistake]

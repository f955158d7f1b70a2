"""[model]: the ways to give a model, and what is refused."""

import json

import pytest

from chinchilla_sim.scenario.load import parse_scenario
from tests.scenario.tables import Tables, mistakes_of, tables


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        ({"builtin": "mnist_mlp", "options": {"widths": [784, 10]}, "weights": "/w.pt"}, "builtin"),
        ({"factory": "package.module:build", "options": {"depth": 2}}, "factory"),
        ({"factory": "/some where/net.py:build"}, "factory"),
        ({"formula": "mlp", "widths": [784, 10]}, "formula"),
        ({"formula": "chain", "task_count": 8, "parameter_count": 100, "work": "1e10 flop", "output": "4 MB"}, "formula"),
        ({"graph": "/graph.json", "format": "chinchilla"}, "graph"),
        ({"formula": "mlp", "widths": [784, 10], "compression": {"prune": 0.5, "quantize": "bf16"}}, "formula"),
    ],
)
def test_each_way_to_give_a_model_is_accepted_and_survives_to_dict(model: Tables, kind: str) -> None:
    """builtin, factory, both formulas and graph: `kind` says which."""
    scenario = parse_scenario(tables(model=model), "x")
    assert scenario.model.kind == kind
    assert parse_scenario(json.loads(json.dumps(scenario.to_dict())), "plan.json") == scenario


@pytest.mark.parametrize(
    ("model", "mistake"),
    [
        ({}, "model: names no model; write exactly one of builtin, factory, formula, graph"),
        (
            {"builtin": "mnist_mlp", "factory": "a:b"},
            "model: names 2 models: builtin, factory; write exactly one of builtin, factory, formula, graph",
        ),
        ({"builtin": "mnist_mlp", "widths": [1, 2]}, 'model.widths: does not belong to builtin; leave it out; it is for formula "mlp"'),
        (
            {"formula": "mlp", "widths": [1, 2], "weights": "w"},
            'model.weights: does not belong to formula "mlp"; leave it out; it is for builtin or factory',
        ),
        ({"formula": "mlp"}, 'model.widths: is missing for formula "mlp"; write for example widths = [784, 512, 10]'),
        ({"formula": "mlp", "widths": [1]}, "model.widths: needs at least 2 entries, has 1; write for example widths = [784, 512, 10]"),
        (
            {"formula": "formula"},
            'model.formula: must be "mlp", "chain", "alexnet", "bert", "gpt", "inception_v3", "llama", "mixture_of_experts", "mpt", '
            '"resnet", "t5", "transformer_xl", "vgg16" or "vit", not "formula"',
        ),
        ({"graph": "g.json"}, 'model.format: is missing for graph; write for example format = "chinchilla"'),
        (
            {"factory": "net.py"},
            'model.factory: "net.py" does not name a function; write "package.module:function" or "path/to/file.py:function"',
        ),
    ],
)
def test_a_wrong_model_is_refused_with_a_cure(model: Tables, mistake: str) -> None:
    """Exactly one kind, all that it needs, and nothing that belongs to another."""
    assert mistakes_of(tables(model=model)) == [mistake]


@pytest.mark.parametrize(
    ("compression", "mistake"),
    [
        ({"quantize": "int3"}, 'model.compression.quantize: must be "bf16", "int8", "int8-static", "int8-weights" or "int4", not "int3"'),
        ({"sparsity": 1.0}, "model.compression.sparsity: must be less than 1, not 1.0"),
        ({"prune": 1.0}, "model.compression.prune: must be less than 1, not 1.0"),
    ],
)  # fmt: skip
def test_a_wrong_compression_is_refused_with_a_cure(compression: Tables, mistake: str) -> None:
    """Formats are named, and nothing can be pruned whole."""
    (found,) = mistakes_of(tables(model={"builtin": "mnist_mlp", "compression": compression}))
    assert found.startswith(mistake)


def test_a_chain_names_everything_that_it_misses() -> None:
    """Four keys make a chain, and each missing one is its own mistake."""
    assert [line.split(":")[0] for line in mistakes_of(tables(model={"formula": "chain"}))] == [
        "model.task_count",
        "model.parameter_count",
        "model.work",
        "model.output",
    ]


def test_options_hold_only_what_json_can_hold() -> None:
    """plan.json embeds the scenario: nan has no place there, however deep."""
    lines = mistakes_of(tables(model={"builtin": "mnist_mlp", "options": {"a": [{"b": float("nan")}]}}))
    assert [line.split(";")[0] for line in lines] == ["model.options.a.0.b: NaN cannot be stored in plan.json"]

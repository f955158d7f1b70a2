"""Drafts of scenarios: whatever is wished is a scenario that plans, or a mistake with its cure."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chinchilla_sim.cluster.catalogue import device_names
from chinchilla_sim.errors import ScenarioError
from chinchilla_sim.graph.zoo import PRESETS
from chinchilla_sim.scenario.load import load_scenario, parse_scenario
from chinchilla_sim.setting import prepare
from chinchilla_sim.starter import BUILTINS, draft_scenario, resolve_device
from chinchilla_sim.wish import Wish
from chinchilla_sim.workflow import make_plan


def scenario_of(wish: Wish, folder: Path = Path()) -> Any:
    """The scenario that a draft holds."""
    return parse_scenario(tomllib.loads(draft_scenario(wish, "draft", folder).text), "draft")


@given(
    st.builds(
        Wish,
        model=st.sampled_from([None, *BUILTINS, *PRESETS, "LlamaForCausalLM", "jobs.mine:build"]),
        kind=st.sampled_from([None, "training", "inference"]),
        batch=st.sampled_from([None, 1, 48]),
        objective=st.sampled_from([None, "step_time", "energy"]),
        device=st.sampled_from([None, "this-machine", *device_names()]),
        count=st.sampled_from([None, 1, 2, 8, 12, 64]),
        price=st.sampled_from([None, "2 USD/h"]),
        power=st.just("65 W"),
    )
)
def test_every_wish_is_a_scenario(wish: Wish) -> None:
    """All models x devices x counts are written as scenarios that are read without a mistake and say what was wished."""
    scenario = scenario_of(wish)
    assert scenario.job.kind == (wish.kind or "training") and scenario.search.objective == (wish.objective or "step_time")
    nodes = scenario.cluster.nodes
    if nodes:
        assert sum(node.count * node.devices for node in nodes) == (wish.count or 1) and nodes[0].device == wish.device
    if wish.batch:
        assert scenario.job.global_batch_size == wish.batch


@pytest.mark.parametrize(
    "wish",
    [
        Wish(),
        Wish("mnist_mlp", objective="cost", price="0.2 USD/h", count=2),
        Wish("llama-2-7b", device="H100", count=16, network="400 Gbit/s"),
        Wish("gpt2-xl", device="a100-sxm-80gb", count=12, network="infiniband-hdr", objective="cost"),
        Wish("resnet50", device="T4", count=4, objective="energy"),
        Wish("bert-large", kind="inference", device="L4", count=2, objective="latency", arrival_rate="100 requests/s"),
    ],
    ids=lambda wish: f"{wish.model}-{wish.device}",
)
def test_a_draft_is_planned_at_once(wish: Wish, tmp_path: Path) -> None:
    """What `init` writes has a plan, within what its devices hold."""
    file = tmp_path / "draft.toml"
    file.write_text(draft_scenario(wish, "draft", tmp_path).text)
    setting = prepare(load_scenario(file))
    assert make_plan(setting, time_limit_s=5).best.step_s > 0


def test_suggestions_are_read_too(tmp_path: Path) -> None:
    """Lines behind a # are keys of the schema: taken one by one, none is a mistake."""
    for wish in (Wish(), Wish("llama-2-7b", device="H100", count=2), Wish(kind="inference")):
        lines = draft_scenario(wish, "draft", tmp_path).text.splitlines()
        suggested = [index for index, line in enumerate(lines) if line.startswith("# ") and " = " in line and "`" not in line]
        assert suggested
        for index in suggested:
            text = "\n".join([*lines[:index], lines[index].removeprefix("# "), *lines[index + 1 :]])
            tables = tomllib.loads(text)
            if "deadline" in lines[index]:
                tables["job"]["steps"] = 100
            parse_scenario(tables, lines[index])


def test_what_cannot_be_is_told_with_its_cure(tmp_path: Path) -> None:
    """An unknown model or device with the nearest one, an objective that nobody can count, a network within one machine, no such file."""
    cases = {
        "did you mean 'llama-2-7b'": Wish("llama-2-7"),
        "did you mean 'h100-pcie'": Wish(device="h100-pcei"),
        'add --price "0.2 USD/h"': Wish(objective="cost"),
        'add --power "65 W"': Wish(objective="energy"),
        "name a --device": Wish(network="10 Gbit/s"),
        "there is no file nowhere.py": Wish("nowhere.py:build"),
        "has no unit": Wish(device="T4", count=16, network="10"),
        "job.arrival_rate is missing": Wish(kind="inference", objective="latency"),
    }
    for cure, wish in cases.items():
        with pytest.raises(ScenarioError) as error:
            draft_scenario(wish, "draft", tmp_path)
        assert cure in str(error.value), (cure, str(error.value))


def test_families_of_devices() -> None:
    """A name of a family is its first member; a whole name is itself."""
    assert resolve_device("H100") == "h100-sxm-80gb" and resolve_device("h100 pcie") == "h100-pcie" and resolve_device("t4") == "t4"
    assert "also has h100-sxm-500w" in draft_scenario(Wish(device="H100"), "draft", Path()).notes[0]


def test_own_code_is_named_from_the_folder_of_the_scenario(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file beside the working folder is found from where the scenario is written."""
    (tmp_path / "job.py").write_text("")
    monkeypatch.chdir(tmp_path)
    assert scenario_of(Wish("job.py:build"), Path("deep/below")).model.factory == "../../job.py:build"

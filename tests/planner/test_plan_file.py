"""plan.json: what is written reads back equal, and every mistake in a file is told with its place."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from chinchilla_sim.errors import ScenarioError
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.planner.plan_file import PlanFile, check_tasks, load_plan
from chinchilla_sim.scenario.load import parse_scenario

TABLES: dict[str, Any] = {
    "name": "two",
    "model": {"formula": "mlp", "widths": [784, 512, 10]},
    "job": {"global_batch_size": 64, "learning_rate": 0.1 + 0.2},
    "cluster": {
        "nodes": [{"name": "n", "count": 2, "peak": "10 Tflop/s", "memory": "16 GiB"}],
        "network": {"bandwidth": "123.456 Mbit/s", "latency": "1.1 us"},
    },
}
PLAN = Plan(
    stages=(("linear", "relu"), ("linear_1", "loss")),
    placement=((0,), (1,)),
    slots=(1, 0),
    global_batch_size=64,
    microbatch_count=4,
    schedule="1f1b",
    gradient_codecs=("none", "none"),
    activation_codecs=("int8",),
    receives_in_flight=3,
)
Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def file() -> PlanFile:
    """A plan with its scenario and hashes."""
    return PlanFile(PLAN, parse_scenario(TABLES, "two.toml"), {"graph": "aa", "catalogue": "bb"}, 0.1 + 0.2)


@pytest.fixture
def saved(file: PlanFile, tmp_path: Path) -> Path:
    """The same in a file."""
    file.save(tmp_path / "plan.json")
    return tmp_path / "plan.json"


def mistakes_in(path: Path) -> list[str]:
    """Places of all mistakes that loading reports."""
    with pytest.raises(ScenarioError) as caught:
        load_plan(path)
    assert caught.value.source == str(path)
    return [mistake.where for mistake in caught.value.mistakes]


def change(path: Path, edit: Change) -> Path:
    """Edit the JSON of a file as a person would."""
    data = json.loads(path.read_text())
    edit(data)
    path.write_text(json.dumps(data))
    return path


def test_file_reads_back_equal(file: PlanFile, saved: Path) -> None:
    """Plan, scenario, hashes and seconds come back to the last bit, and nothing else is left in the folder."""
    assert load_plan(saved) == file
    assert [path.name for path in saved.parent.iterdir()] == ["plan.json"]


def test_saving_again_changes_no_byte(saved: Path) -> None:
    """A file that is loaded and saved is the same file."""
    before = saved.read_bytes()
    load_plan(saved).save(saved)
    assert saved.read_bytes() == before


def test_plan_written_by_hand_needs_no_hashes(saved: Path, file: PlanFile) -> None:
    """Summary, seconds, hashes and receives in flight may be left out."""

    def shorten(data: dict[str, Any]) -> None:
        for key in ("summary", "hashes", "simulated_step_s"):
            del data[key]
        del data["plan"]["receives_in_flight"]

    loaded = load_plan(change(saved, shorten))
    assert loaded == replace(file, hashes={}, simulated_step_s=None, plan=replace(PLAN, receives_in_flight=8))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_half_a_file_is_refused(saved: Path, share: float) -> None:
    """A file that breaks off is told as such, with its name."""
    text = saved.read_text()
    saved.write_text(text[: int(share * len(text))])
    with pytest.raises(ScenarioError, match="the file is not whole"):
        load_plan(saved)


def test_missing_and_binary_files_are_refused(tmp_path: Path) -> None:
    """No file, or no text, is a ScenarioError."""
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for name in ("nowhere.json", "binary"):
        with pytest.raises(ScenarioError, match="cannot be read"):
            load_plan(tmp_path / name)


@pytest.mark.parametrize(
    ("edit", "places"),
    [
        (lambda data: data.update(format="other"), ["format"]),
        (lambda data: data.update(version=2), ["version"]),
        (lambda data: data.update(extra=1), ["extra"]),
        (lambda data: data.pop("plan"), ["plan"]),
        (lambda data: data["plan"].update(schedule="2f2b"), ["plan.schedule"]),
        (lambda data: data["plan"].update(microbatch_count=0), ["plan.microbatch_count"]),
        (lambda data: data["plan"].update(gradient_codecs=["none", "zip"]), ["plan.gradient_codecs.1"]),
        (lambda data: data["plan"].update(colour="red"), ["plan.colour"]),
        (lambda data: data["plan"].update(slots=["first", 1], schedule=3), ["plan.slots.0", "plan.schedule"]),
        (lambda data: data["plan"].pop("stages"), ["plan.stages"]),
        (lambda data: data["scenario"].pop("job"), ["job"]),
    ],
    ids=["format", "version", "extra", "no-plan", "schedule", "count", "codec", "extra-in-plan", "two", "no-stages", "scenario"],
)
def test_wrong_fields_are_told_by_their_place(saved: Path, edit: Change, places: list[str]) -> None:
    """Every wrong, missing or unknown field is named, all at once."""
    assert mistakes_in(change(saved, edit)) == places


def test_a_scenario_is_no_plan(tmp_path: Path) -> None:
    """Who names the scenario where its plan is read is told to plan it first."""
    (tmp_path / "s.toml").write_text("[job]\n")
    with pytest.raises(ScenarioError, match=r"is a scenario, not a plan; plan it first: `chinchilla plan .*s.toml -o plan.json`"):
        load_plan(tmp_path / "s.toml")


@pytest.mark.parametrize("text", ["[]", "null", '"plan"', "3"])
def test_other_json_is_refused(saved: Path, text: str) -> None:
    """JSON that is no table is a ScenarioError too."""
    saved.write_text(text)
    assert len(mistakes_in(saved)) == 1


@pytest.mark.parametrize(
    ("changes", "places"),
    [
        ({"placement": [[0], [0]]}, ["plan.placement"]),
        ({"placement": [[0], [2]]}, ["plan.placement"]),
        ({"placement": [[0]]}, ["plan.placement", "plan.placement"]),
        ({"slots": [1, 1]}, ["plan.slots"]),
        ({"activation_codecs": []}, ["plan.activation_codecs"]),
        ({"activation_codecs": ["one-bit"]}, ["plan.activation_codecs.0"]),
        ({"gradient_codecs": ["top-k", "none"], "zero_stage": 3}, ["plan.gradient_codecs"]),
        ({"microbatch_count": 5}, ["plan.microbatch_count"]),
        ({"stages": []}, ["plan.stages", "plan.placement", "plan.gradient_codecs", "plan.activation_codecs"]),
    ],
)
def test_contradictions_are_told_by_their_place(saved: Path, changes: dict[str, Any], places: list[str]) -> None:
    """A placement that uses a rank twice, a codec too few, a batch that does not divide: named like wrong fields."""
    found = mistakes_in(change(saved, lambda data: data["plan"].update(changes)))
    assert found == places


def test_changed_surroundings_are_named(file: PlanFile) -> None:
    """What has another hash than when the plan was made is named; what is equal or unknown is not."""
    assert file.mismatches({"graph": "aa", "catalogue": "bb", "calibration": "cc"}) == []
    assert [str(m) for m in file.mismatches({"graph": "xx", "catalogue": "bb"})] == [
        "hashes.graph: the graph has changed since this plan was made; plan again, or go on with --force"
    ]


TASKS = ["linear", "relu", "linear_1", "loss"]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"stages": (("linear", "relu"), ("linear_1",))}, "missing loss"),
        ({"stages": (("linear", "relu"), ("linear_1", "loss", "dropout"))}, "unknown dropout"),
        ({"stages": (("linear", "relu"), ("loss", "linear_1"))}, "order or repetition differs"),
        ({"stages": (("linear", "relu"), ("relu", "linear_1", "loss"))}, "order or repetition differs"),
        ({"slots": (0, 2)}, "the cluster has slots 0 to 1"),
        ({"slots": (-1, 0)}, "the cluster has slots 0 to 1"),
    ],
)
def test_plan_must_fit_its_graph_and_cluster(changes: dict[str, Any], text: str) -> None:
    """Every task once and in order, and no slot that the cluster does not have."""
    with pytest.raises(ScenarioError, match=text):
        check_tasks(replace(PLAN, **changes), TASKS, 2, "plan.json")


def test_plan_that_fits_passes() -> None:
    """A good plan raises nothing."""
    check_tasks(PLAN, TASKS, 2, "plan.json")


def test_mistakes_in_tasks_and_slots_are_told_together() -> None:
    """Both places at once."""
    with pytest.raises(ScenarioError) as caught:
        check_tasks(replace(PLAN, stages=(("linear",), ("loss",)), slots=(0, 9)), TASKS, 2, "plan.json")
    assert [mistake.where for mistake in caught.value.mistakes] == ["plan.stages", "plan.slots"]

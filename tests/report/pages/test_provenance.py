"""Where inputs are from."""

import json

from chinchilla_sim.cluster.build import build_cluster
from chinchilla_sim.cluster.catalogue import price_source_of, source_of
from chinchilla_sim.report.pages.provenance import SCENARIO, assumptions, inputs_table, provenance_dict
from chinchilla_sim.report.study import Study
from chinchilla_sim.scenario.load import load_scenario, parse_scenario
from chinchilla_sim.setting import prepare
from chinchilla_sim.workflow import make_plan, study_of
from tests.conftest import CALIBRATION
from tests.report.cells import MakeStudy, row_of
from tests.test_scenarios import ROOT


def test_what_the_scenario_states_is_told_so(pipeline: Study) -> None:
    """Speed, price, power and network of own nodes are the scenario's; what is missing is told with its cure."""
    table = inputs_table(pipeline)
    for name in ("job", "node: 2 x 1 x device", "node: price", "node: power", "network (switch)"):
        assert row_of(table, name)["where from"] == SCENARIO
    assert "grid_intensity" in row_of(table, "CO2 of the grid")["where from"]
    assert row_of(table, "node: price")["value"] == "2.00 USD/h per device"


def test_catalogued_devices_name_source_and_date(make_study: MakeStudy) -> None:
    """Entry, price and protocol have their source; what the scenario replaces is named."""
    node = {"name": "gpu", "count": 2, "devices": 2, "device": "v100-sxm2-32gb", "memory": "30 GB"}
    table = inputs_table(make_study(cluster__nodes=[node], cluster__network__backend="nccl"))
    device = row_of(table, "gpu: 2 x 2 x v100-sxm2-32gb")["where from"]
    assert source_of("devices", "v100-sxm2-32gb") in device and device.endswith("the scenario states its own memory")
    assert row_of(table, "gpu: price")["where from"] == price_source_of("v100-sxm2-32gb")
    assert source_of("backends", "nccl") in row_of(table, "protocol nccl")["where from"]
    assert "link within nodes of v100-sxm2-32gb" in [row[0] for row in table.rows]


def test_this_machine_names_its_calibration() -> None:
    """Date, processor and torch of the measurement stand beside what it gave."""
    setting = prepare(load_scenario(ROOT / "scenarios" / "mnist_mlp.toml"))
    study = study_of(setting, make_plan(setting))
    key = json.loads(CALIBRATION.read_text())["key"]
    found = row_of(inputs_table(study), "2 ranks of this machine")["where from"]
    assert found.startswith("calibration of ") and key["cpu"] in found and key["torch"] in found


def test_defaults_are_what_is_not_written() -> None:
    """A key that is written is no default, whatever its value."""
    tables = {"model": {"formula": "mlp", "widths": [4, 4]}, "job": {"global_batch_size": 8, "optimizer": "adam"}}
    scenario = parse_scenario(tables | {"cluster": {"kind": "this-machine", "ranks": 1}}, "test")
    found = scenario.defaults()
    assert found["job.precision"] == '"fp32"' and "search.objective" in found
    assert not {"job.optimizer", "job.global_batch_size", "job.steps", "cluster.network.backend"} & set(found)


def test_json_tells_inputs_assumptions_and_digests(racks: Study) -> None:
    """The same rows as the table, beside what is assumed."""
    told = json.loads(json.dumps(provenance_dict(racks)))["provenance"]
    assert [tuple(row.values()) for row in told["inputs"]] == list(inputs_table(racks).rows)
    assert told["assumptions"] == assumptions(racks) and set(told["sha256"]) == {"graph", "cluster", "catalogue"}
    assert build_cluster(racks.scenario.cluster, "fp32").digest == told["sha256"]["cluster"]

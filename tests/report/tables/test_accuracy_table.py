"""The accuracy table as it is printed."""

import json

from chinchilla_sim.planner.accuracy import AS_IT_IS, AccuracyTable, Protocol, ShortRun
from chinchilla_sim.report.tables.accuracy_table import accuracy_dict, accuracy_table
from chinchilla_sim.scenario.load import parse_scenario
from tests.report.conftest import TWO_NODES


def table_of() -> AccuracyTable:
    """Three seeds as they are and with int8, which loses 1 %."""
    runs = []
    for change, lost, sent in ((AS_IT_IS, 0.0, 100.0), ("gradients: int8", 0.01, 25.0)):
        runs += [
            ShortRun(change, seed, (0, 10, 20), {"validation_accuracy": (0.1, 0.5 - lost, 0.9 - lost)}, sent, 100.0) for seed in range(3)
        ]
    return AccuracyTable({}, Protocol(20), tuple(runs), "2026-11-28", refused={"variant: pruned 50 %": "it cannot be trained"})


def test_each_change_has_a_row_with_its_interval_and_bytes() -> None:
    """The run as it is comes first and is compared with nothing; the note says how it was measured and what was not."""
    scenario = parse_scenario({**TWO_NODES, "job": {"global_batch_size": 64, "target_accuracy": 0.7}}, "test")
    table = accuracy_table(table_of(), scenario)
    assert table.rows[0] == (AS_IT_IS, "90.0 %", "-", "-", "15", "-", "-", "3 of 3", "100 B of 100 B")
    assert table.rows[1][:4] == ("gradients: int8", "89.0 %", "-1.0 %", "-1.0 % to -1.0 %")
    assert table.rows[1][-1] == "25.0 B of 100 B"
    assert "steps to validation_accuracy 0.7" in table.note and "variant: pruned 50 % (it cannot be trained)" in table.note


def test_the_same_as_json() -> None:
    """Rows have what the table shows, and the runs are there to be read back."""
    scenario = parse_scenario({**TWO_NODES, "job": {"global_batch_size": 64, "target_accuracy": 0.7}}, "test")
    found = json.loads(json.dumps(accuracy_dict(table_of(), scenario)))
    assert [row["change"] for row in found["changes"]] == [AS_IT_IS, "gradients: int8"]
    assert round(found["changes"][1]["drop"]["estimate"], 9) == 0.01 and found["changes"][1]["reached"] == 3
    assert AccuracyTable.from_dict(found["table"]) == table_of()

"""What `chinchilla calibrate --accuracy` does, and what its table says of a plan."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chinchilla_sim.cli.shared import at_least, load_scenario_file, named
from chinchilla_sim.console import log, print_json, print_tables, searching, writable_file
from chinchilla_sim.errors import Mistake, ScenarioError

if TYPE_CHECKING:
    from chinchilla_sim.planner.plan import Plan
    from chinchilla_sim.setting import Setting


def only_with_accuracy(given: Mapping[str, object]) -> None:
    """A ScenarioError for options that mean nothing without --accuracy."""
    mistakes = [
        Mistake(option, "is for --accuracy", "add --accuracy, or leave it out") for option, value in given.items() if value is not None
    ]
    if mistakes:
        raise ScenarioError(mistakes)


def calibrate_accuracy(
    source: Path | None,
    overrides: list[str] | None,
    seeds: int | None,
    steps: int | None,
    replicas: int | None,
    output: Path | None,
    as_json: bool,
) -> None:
    """Measure the accuracy of what a scenario's plans may change, and print the table."""
    from chinchilla_sim.accuracy import Amount, measure_accuracy
    from chinchilla_sim.report.tables.accuracy_table import accuracy_dict, accuracy_table

    if source is None:
        raise ScenarioError([Mistake("--accuracy", "needs a job to run", "write chinchilla calibrate --accuracy SCENARIO.toml")])
    for option, count in {"--seeds": seeds, "--steps": steps, "--replicas": replicas}.items():
        if count is not None:
            at_least(option, count)
    if output:
        writable_file(output, "--output")
    scenario = load_scenario_file(source, overrides)
    with named(source), searching("short runs") as progress:
        table, path = measure_accuracy(scenario, Amount(seeds, steps, replicas), output, progress, log)
    if as_json:
        print_json(accuracy_dict(table, scenario))
    else:
        print_tables(accuracy_table(table, scenario))
        log(f"stored in {path}")


def accuracy_of(setting: Setting, plan: Plan, step_s: float) -> tuple[list[str], dict[str, Any]]:
    """What is known of a given plan's accuracy, in words and JSON-ready; nothing where nobody asks and nothing was measured."""
    from chinchilla_sim.accuracy import rule_of
    from chinchilla_sim.planner.explanation.explain import accuracy_words

    rule = rule_of(setting, strict=False)
    if rule is None:
        return [], {}
    forecast = rule.forecast(plan)
    return [f"Accuracy: {accuracy_words(rule, forecast, step_s)}."], {"accuracy": rule.to_dict() | {"plan": forecast.to_dict()}}

"""`chinchilla validate variants`: compressed variants of a model, simulated and measured."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from chinchilla_sim.cli.app import AsJson, Overrides, validate
from chinchilla_sim.cli.shared import CALIBRATION_S, load_scenario_file, named
from chinchilla_sim.console import busy, log, print_json, print_tables


@validate.command(name="variants")
def validate_variants(
    scenario: Path, *, train: Annotated[bool, Parameter(negative=())] = False, overrides: Overrides = None, as_json: AsJson = False
) -> None:
    """Make every variant of [search] on this machine, and print simulated against measured seconds of a forward pass of the global batch.

    Variants take turns on one rank; ratios are medians of rounds. Accuracies are those of the job's evaluate(), where the model has
    trained weights (model.weights, or --train); a variant with fine_tune_epochs is trained on first. What is no linear layer follows from
    plain formulas, unless `chinchilla calibrate SCENARIO` has measured the tasks of the model as it is.

    Parameters
    ----------
    scenario
        A scenario (TOML) whose [search] lists variants, or whose model has compression.
    train
        Train the model for job.epochs on one rank first.
    """
    from chinchilla_sim.report.tables.variants import variants_table
    from chinchilla_sim.variants import compare_variants, ensure_formats

    loaded = load_scenario_file(scenario, overrides)
    with busy("measuring this machine, once", CALIBRATION_S):
        for note in ensure_formats():
            log(note)
    with named(scenario), busy("measuring variants"):
        check = compare_variants(loaded, train)
    if as_json:
        print_json(check.to_dict())
    else:
        print_tables(variants_table(check))

"""`chinchilla validate variants`: compressed variants of a model, simulated and measured."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from chinchilla_sim.cli.app import AsJson, Overrides, validate
from chinchilla_sim.cli.shared import CALIBRATION_S, at_least, load_scenario_file, named
from chinchilla_sim.console import busy, log, print_json, print_tables


@validate.command(name="variants")
def validate_variants(
    scenario: Path,
    *,
    train: Annotated[bool, Parameter(negative=())] = False,
    ranks: list[int] | None = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
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
    ranks
        Also train every variant from the start for job.epochs over so many ranks of this machine, integer weights rounded in every pass,
        and let it answer over them with the weights that come out; may be given several times.
    """
    from chinchilla_sim.report.tables.variants import spread_tables, variants_table
    from chinchilla_sim.variants import compare_variants, ensure_formats, spread_variants

    counts = list(dict.fromkeys(ranks or ()))
    for count in counts:
        at_least("--ranks", count, 2)
    loaded = load_scenario_file(scenario, overrides)
    with busy("measuring this machine, once", CALIBRATION_S):
        for note in ensure_formats(max(counts, default=1)):
            log(note)
    with named(scenario):
        with busy("measuring variants"):
            check = compare_variants(loaded, train)
        spread = list(spread_variants(loaded, counts, log))
    if as_json:
        print_json(check.to_dict() | ({"over_ranks": [row.to_dict() for row in spread]} if spread else {}))
    else:
        print_tables(variants_table(check), *spread_tables(spread))

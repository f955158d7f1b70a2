"""Commands about gradient compression: what others measured, and when it pays."""

from __future__ import annotations

from pathlib import Path

from chinchilla_sim.cli.app import DECIDE, AsJson, Output, Overrides, app, validate
from chinchilla_sim.cli.shared import load_scenario_file, quantity_of
from chinchilla_sim.console import Interrupt, log, print_json, print_tables, save_json, searching, writable_folder
from chinchilla_sim.errors import Mistake, ScenarioError

BANDWIDTHS = "100 Mbit/s, 1 Gbit/s, 10 Gbit/s, 25 Gbit/s, 100 Gbit/s, 400 Gbit/s"
BATCH_FACTORS = (1 / 4, 1 / 2, 1, 2, 4, 8)


@validate.command(name="codecs")
def validate_codecs(rows: Path, *, output: Output = None, as_json: AsJson = False) -> None:
    """Predict throughput with gradient compression relative to none, and rank-correlate it with what was measured.

    Parameters
    ----------
    rows
        CSV in the columns of gradient_compression_steps.csv (GRACE's runs of 17 methods on 7 models).
    output
        Write one line per run: id, simulated_step_s, simulated_rel_throughput, measured_rel_throughput.
    """
    from chinchilla_sim.report.tables.codecs import codec_tables, codecs_dict
    from chinchilla_sim.validation.codecs import check_codecs, write_predicted_codecs

    if output:
        writable_folder(output.parent)
    result = check_codecs(rows)
    if output:
        write_predicted_codecs(result.predicted, output)
    if as_json:
        print_json(codecs_dict(result))
    else:
        print_tables(*codec_tables(result))


@app.command(group=DECIDE)
def codecs(
    scenario: Path,
    *,
    bandwidths: str = BANDWIDTHS,
    batches: str | None = None,
    overrides: Overrides = None,
    output: Output = None,
    as_json: AsJson = False,
) -> None:
    """Map when compression of gradients pays: the fastest codec of the best data-parallel plan, by network bandwidth and batch.

    All codecs are tried, allowed by the scenario or not. The map tells the time of a step, not how many steps a lossy codec needs.
    Ctrl-C ends it with the batches that are done.

    Parameters
    ----------
    scenario
        A scenario file (TOML) of a training job on several devices.
    bandwidths
        Of the narrowest link between nodes (within the node where there is one only), separated by commas; others in proportion.
    batches
        Global batch sizes, separated by commas (default: from a quarter of the scenario's to eight times it).
    output
        Write codecs.svg and codecs.json into this folder.
    """
    from chinchilla_sim.report.drawing.codec_map import codec_map_dict, codec_map_svg, codec_map_table
    from chinchilla_sim.workflow import map_codecs

    if output:
        writable_folder(output)
    loaded = load_scenario_file(scenario, overrides)
    rates = _bandwidths(bandwidths)
    sizes = _batches(batches) if batches is not None else default_batches(loaded.job.global_batch_size)
    interrupt = Interrupt()
    with searching("mapping codecs") as progress, interrupt.heeded():
        found = map_codecs(loaded, rates, sizes, progress, interrupt)
    if output:
        (output / "codecs.svg").write_text(codec_map_svg(found) + "\n")
        save_json(output / "codecs.json", codec_map_dict(found))
    if as_json:
        print_json(codec_map_dict(found))
    else:
        print_tables(codec_map_table(found))
    if output:
        log(f"map written to {output / 'codecs.svg'}")
    interrupt.leave()


def default_batches(batch: int) -> list[int]:
    """From a quarter of a batch to eight times it, whole numbers.

    >>> default_batches(6)
    [3, 6, 12, 24, 48]
    """
    return [int(batch * factor) for factor in BATCH_FACTORS if (batch * factor) == int(batch * factor)]


def _bandwidths(text: str) -> list[float]:
    from chinchilla_sim.units import parse_bandwidth

    found = [quantity_of("--bandwidths", part.strip(), parse_bandwidth) for part in text.split(",")]
    if min(found) <= 0:
        raise ScenarioError([Mistake("--bandwidths", "must be more than 0", f'write for example "{BANDWIDTHS}"')])
    return found


def _batches(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    wrong = [part for part in parts if not (part.isascii() and part.isdigit() and int(part) > 0)]
    if wrong:
        raise ScenarioError([Mistake("--batches", f"{wrong[0]!r} is no number of samples", 'write for example "32,64,128"')])
    return [int(part) for part in parts]

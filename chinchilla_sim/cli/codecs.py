"""Commands about gradient compression: what others measured, and when it pays."""

from __future__ import annotations

from pathlib import Path

from chinchilla_sim.cli.app import AsJson, Output, validate
from chinchilla_sim.console import print_json, print_tables, writable_folder


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
    from chinchilla_sim.report.codecs import codec_tables, codecs_dict
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

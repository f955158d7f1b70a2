"""The command that writes a report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from chinchilla_sim.cli.app import DECIDE, AsJson, Output, Overrides, app
from chinchilla_sim.cli.shared import find_plan, load_scenario_file, measurement_of
from chinchilla_sim.console import busy, print_json, save_json, writable_folder

if TYPE_CHECKING:
    from chinchilla_sim.planner.plan_file import PlanFile
    from chinchilla_sim.report.study import Study

Form = Literal["html", "md", "json", "csv", "png"]


@app.command(group=DECIDE)
def report(
    source: Path,
    *,
    overrides: Overrides = None,
    output: Output = None,
    form: Annotated[list[Form] | None, Parameter(name="--format", negative=(), consume_multiple=True)] = None,
    as_json: AsJson = False,
) -> None:
    """Write a report about a scenario: one self-contained HTML page, or other forms, with a Chrome trace, a summary and JSON beside it.

    It tells why the plan wins, draws it over the cluster and its step with the causes of idle time, then alternatives, what the step
    depends on, memory, cost with CO2, trade-offs, and where every figure is from. Open trace.json in ui.perfetto.dev.

    Parameters
    ----------
    source
        A scenario (TOML). What `chinchilla run` measured in the same folder is shown beside the simulation.
    output
        Folder to write to (default: reports/NAME).
    form
        html (one page, default), md (the same in Markdown), json, csv (one row per plan, base units), png (every figure); several may
        be named.
    """
    from chinchilla_sim.workflow import plan_file, thorough_study

    scenario_name = load_scenario_file(source, overrides).name
    folder = writable_folder(output or Path("reports") / scenario_name)
    setting, search = find_plan(source, overrides, front=True)
    file = plan_file(setting, search)
    with busy("simulating with other inputs"):
        study = thorough_study(setting, search, measurement_of(folder / "run", file))
    result = _save_data(study, file, folder)
    written = _save_forms(study, folder, form or ["html"])
    if as_json:
        print_json(result)
    else:
        print(*written, sep="\n")


def _save_data(study: Study, file: PlanFile, folder: Path) -> dict[str, Any]:
    """What goes with every form: plan, summary, trace and JSON."""
    from chinchilla_sim.report.drawing.trace import chrome_trace
    from chinchilla_sim.report.pages.result import report_dict
    from chinchilla_sim.report.pages.summary import summary_text

    result = report_dict(study) | {"plan": file.to_dict()}
    timelines = {"simulated": study.timeline} | ({"measured": study.measurement.timeline} if study.measurement else {})
    file.save(folder / "plan.json")
    (folder / "summary.txt").write_text(summary_text(study), encoding="utf-8")
    save_json(folder / "trace.json", chrome_trace(timelines))
    save_json(folder / "report.json", result)
    return result


def _save_forms(study: Study, folder: Path, forms: list[Form]) -> list[Path]:
    """The files that were asked for."""
    from chinchilla_sim.report.pages.markdown import pictures_of, render_markdown
    from chinchilla_sim.report.pages.page import render_page
    from chinchilla_sim.report.pages.spreadsheet import render_csv

    written = []
    for form in dict.fromkeys(forms):
        if form == "png":
            for name, picture in pictures_of(study):
                (folder / name).write_bytes(picture)
                written.append(folder / name)
            continue
        path = folder / f"report.{form}"
        if form == "html":
            path.write_text(render_page(study), encoding="utf-8")
        elif form == "md":
            path.write_text(render_markdown(study, pictures="png" in forms), encoding="utf-8")
        elif form == "csv":
            path.write_text(render_csv(study), encoding="utf-8")
        written.append(path)
    return written

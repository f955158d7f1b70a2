"""Commands of the first ten minutes: init, examples, doctor."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from textwrap import shorten
from typing import Annotated, Any

from cyclopts import Parameter

from chinchilla_sim.cli.app import FIRST_STEPS, AsJson, Output, app
from chinchilla_sim.cli.shared import at_least
from chinchilla_sim.console import log, print_json, print_tables, writable_folder
from chinchilla_sim.errors import Mistake, ScenarioError
from chinchilla_sim.wish import Wish

LINE_WIDTH = 110
Replace = Annotated[bool, Parameter(name="--force", help="Replace files that are there.", negative=())]


@app.command(group=FIRST_STEPS)
def init(
    file: Path = Path("scenario.toml"),
    *,
    wish: Annotated[Wish, Parameter(name="*")] = Wish(),  # noqa: B008 - frozen
    ask: bool | None = None,
    force: Replace = False,
    as_json: AsJson = False,
) -> None:
    """Write a first scenario with comments, for this machine or for named devices; `chinchilla plan` reads it as it is.

    On a terminal it asks for what the options leave open; elsewhere defaults are taken.

    Parameters
    ----------
    file
        The file to write.
    ask
        Ask for what is left open (default: on a terminal).
    """
    from chinchilla_sim.scenario.load import load_scenario
    from chinchilla_sim.starter import draft_scenario

    for option, number in {"--batch": wish.batch, "--count": wish.count}.items():
        if number is not None:
            at_least(option, number)
    if file.exists() and not force:
        raise ScenarioError([Mistake(str(file), "is there already", "name another file, or replace it by --force")])
    asking = sys.stdin.isatty() and sys.stderr.isatty() and not as_json if ask is None else ask
    draft = draft_scenario(_ask_for(wish) if asking else wish, file.stem, file.parent)
    writable_folder(file.parent, "FILE")
    file.write_text(draft.text, encoding="utf-8")
    scenario = load_scenario(file)
    for note in draft.notes:
        log(note)
    if as_json:
        print_json({"file": str(file), "notes": list(draft.notes), "scenario": scenario.to_dict()})
    else:
        print(f"{file} is written; next: chinchilla plan {file}")


def _ask_for(wish: Wish) -> Wish:
    """What the options leave open, asked one by one; an answer that means nothing is asked for again."""
    from chinchilla_sim.cluster.calibration import core_count
    from chinchilla_sim.scenario.cluster import THIS_MACHINE
    from chinchilla_sim.starter import BATCH_SIZE, BUILTINS, resolve_device, resolve_model

    if wish.model is None:
        hint = f"{', '.join(BUILTINS)} run; llama-2-7b, resnet50 and others are planned; or file.py:build"
        wish = replace(wish, model=_answer(f"Which model? ({hint})", "mnist_mlp", resolve_model))
    if wish.kind is None:
        wish = replace(wish, kind=_answer("training or inference?", "training", choices=["training", "inference"]))  # type: ignore[arg-type]
    if wish.device is None:
        question = "On which device? (this-machine, or one of the catalogue, such as H100)"
        wish = replace(wish, device=_answer(question, THIS_MACHINE, lambda text: text == THIS_MACHINE or resolve_device(text)))
    if wish.count is None:
        default = core_count() if wish.here else 8
        wish = replace(wish, count=int(_answer("How many ranks?" if wish.here else "How many of them?", str(default), _positive)))
    if wish.network is None and not wish.here and (wish.count or 1) > 8:
        wish = replace(wish, network=_answer("What joins the nodes? (a bandwidth, or a link of the catalogue)", "100 Gbit/s", _network))
    if wish.batch is None:
        default = max(BATCH_SIZE, 8 * (wish.count or 1))
        wish = replace(wish, batch=int(_answer("Samples of a step, over all devices?", str(default), _positive)))
    if wish.objective is None:
        goals = ["step_time", "cost", "energy", *(["latency"] if wish.arrival_rate else [])]
        wish = replace(wish, objective=_answer("Minimise what?", "step_time", choices=goals))  # type: ignore[arg-type]
    if wish.here and wish.objective == "cost" and wish.price is None:
        wish = replace(wish, price=_answer("What does this machine cost?", "0.2 USD/h", _price))
    if wish.here and wish.objective == "energy" and wish.power is None:
        wish = replace(wish, power=_answer("How much power does this machine take?", "65 W", _power))
    return wish


def _answer(question: str, default: str, check: Callable[[str], Any] | None = None, choices: list[str] | None = None) -> str:
    """An answer that passes the check, from stdin; questions go to stderr."""
    from rich.console import Console
    from rich.markup import escape
    from rich.prompt import Prompt

    while True:
        text = Prompt.ask(escape(question), console=Console(stderr=True), default=default, choices=choices).strip()
        try:
            if check:
                check(text)
        except (ScenarioError, ValueError) as error:
            log(str(error))
        else:
            return text


def _positive(text: str) -> None:
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise ValueError(f"{text!r} is no number of at least 1")


def _network(text: str) -> None:
    from chinchilla_sim.cluster.catalogue import entries
    from chinchilla_sim.units import parse_bandwidth

    if text not in entries("links"):
        parse_bandwidth(text)


def _price(text: str) -> None:
    from chinchilla_sim.units import parse_usd_per_s

    parse_usd_per_s(text)


def _power(text: str) -> None:
    from chinchilla_sim.units import parse_watt

    parse_watt(text)


@app.command(group=FIRST_STEPS)
def examples(*names: str, output: Output = None, force: Replace = False, as_json: AsJson = False) -> None:
    """List the scenarios that come with chinchilla_sim, one line each; with names: copy these.

    Parameters
    ----------
    names
        Examples to copy, with the files that they read.
    output
        Folder to copy to (default: the current one).
    """
    from chinchilla_sim.examples import copy_examples, list_examples
    from chinchilla_sim.report.table import Table

    if names:
        copied = copy_examples(names, output or Path(), force)
        if as_json:
            print_json({"copied": [str(path) for path in copied]})
        else:
            print("\n".join(map(str, copied)))
        return
    if output:
        raise ScenarioError([Mistake("--output", "is a folder to copy to, and no example is named", "chinchilla examples NAME -o DIR")])
    found = list_examples()
    if as_json:
        print_json({"examples": [example.to_dict() for example in found]})
    else:
        rows = tuple((example.name, shorten(example.line, LINE_WIDTH, placeholder=" ...")) for example in found)
        note = "copy one by `chinchilla examples NAME -o DIR`"
        print_tables(Table("Scenarios that come with chinchilla_sim", ("name", "about"), rows, text_columns=(0, 1), note=note))


@app.command(group=FIRST_STEPS)
def doctor(*, as_json: AsJson = False) -> None:
    """Say what is installed, what this machine can do, what would fail and the cure; exit code 1 where jobs cannot run."""
    from chinchilla_sim.doctor import examine
    from chinchilla_sim.report.tables.findings import findings_dict, findings_table, is_ready

    findings = examine()
    if as_json:
        print_json(findings_dict(findings))
    else:
        print_tables(findings_table(findings))
    if not is_ready(findings):
        sys.exit(1)

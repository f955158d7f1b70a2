"""The fuzzer: its own files are valid, it finds what is planted, and it finds nothing in our parsers."""

import re
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from chinchilla_sim.errors import Mistake, ScenarioError
from chinchilla_sim.validation.fuzz import Parser, fuzz, judge, parsers
from chinchilla_sim.validation.mutation import shrink, spoil

INPUTS = 780
PLANTED = 'cannot be "7"'


@pytest.mark.parametrize("parser", parsers(), ids=lambda parser: parser.name)
def test_seeds_are_valid(parser: Parser, tmp_path: Path) -> None:
    """Every file that is spoilt was whole before."""
    for seed in parser.seeds:
        path = tmp_path / f"seed{parser.suffix}"
        path.write_bytes(seed)
        parser.read(path)


def test_spoilt_files_are_read_or_refused() -> None:
    """A few hundred files of all kinds, of which some of every kind are refused; `chinchilla bench fuzz` reads 10,000."""
    tallies = fuzz(INPUTS, seed=1)
    assert [(tally.parser.name, one.error, one.place) for tally in tallies for one in tally.found.values()] == []
    assert sum(tally.inputs for tally in tallies) == INPUTS
    assert all(tally.refused for tally in tallies) and sum(tally.valid for tally in tallies) > INPUTS / 20


def spoilt(name: str, old: bytes, new: bytes) -> tuple[Parser, bytes]:
    """The first file of a parser that holds a text, with another in its place."""
    parser = next(parser for parser in parsers() if parser.name == name)
    whole = next(seed for seed in parser.seeds if old in seed)
    return parser, whole.replace(old, new, 1)


@pytest.mark.parametrize(
    ("name", "old", "new", "words"),
    [
        ("scenario", b"executable = false", b"local_steps = 0.5", "search.local_steps: must be a list"),
        ("plan", b'"global_batch_size": 16', b'"global_batch_size": ' + b"9" * 5000, "holds what no plan holds"),
        ("plan", b'"hashes": {', b'"hashes": ' + b"[" * 5000, "holds what no plan holds"),
        ("plan", b'"simulated_step_s": 0.5', b'"simulated_step_s": NaN', "simulated_step_s"),
        ("plan", b'"replica_microbatch_counts": [', b'"replica_microbatch_counts": [2,', "one per replica"),
        ("import deepspeed", b'"gradient_clipping": 1.0', b'"gradient_clipping": 1' + b"0" * 400, "gradient_clipping: must be a number"),
        ("accuracy table", b'"date": "2026-11-28"', b'"date": []', "is not what was written"),
        ("accuracy table", b'"validation_loss"', b'"validation_accuracy"', "different metrics"),
        ("accuracy table", b'"seed": 0', b'"seed": [0]', "has no name, seed or steps"),
        ("accuracy table", b'"sent_bytes": 1000.0', b'"sent_bytes": 1' + b"0" * 400, "cannot be read"),
        ("calibration", b'"transfer_latency_s": 0.0001', b'"transfer_latency_s": 1' + b"0" * 400, "is not a number"),
        ("calibration", b'"cores": 2', b'"cores": "two"', "cores of its machine"),
        ("calibration", b'"flop_s": 1e-11', b'"flop_s": "fast"', "is not one of numbers"),
        ("program", b"1F0", b"99999999F0", "names a stage beyond"),
        ("program", b"0F0,0F1,,0B0,0B1\n,1F0,", b"0F0,0F1,0B0,0B1,1F0,", "put F behind F of the stage before"),
        ("program", b"0F0", b"0" * 140_000, "cannot be read"),
    ],
)
def test_what_was_found_stays_refused(name: str, old: bytes, new: bytes, words: str, tmp_path: Path) -> None:
    """Files that once made a parser fall over are refused with the file's name, the place and a cure."""
    parser, content = spoilt(name, old, new)
    path = tmp_path / f"found{parser.suffix}"
    path.write_bytes(content)
    with pytest.raises(ScenarioError, match=re.escape(words)) as caught:
        parser.read(path)
    assert path.name in str(caught.value)


def test_the_same_seed_makes_the_same_files() -> None:
    """Bytes depend on the seed alone."""
    parser = parsers()[0]
    twice = [[spoil(parser.seeds[0], parser.form, Random(f"7/{number}")) for number in range(50)] for _ in range(2)]
    assert twice[0] == twice[1] and len(set(twice[0])) > 40
    assert spoil(parser.seeds[0], parser.form, Random("8/0")) != twice[0][0]


def test_what_escapes_is_found_and_made_small(tmp_path: Path) -> None:
    """A parser that falls over a 7, refuses without words, or hangs on nothing: told apart, the smallest file kept."""

    def read(path: Path) -> None:
        content = path.read_bytes()
        if b"7" in content:
            raise KeyError(PLANTED)
        raise ScenarioError([Mistake("", "")] if b"x" in content else [Mistake("a", "is wrong", "write b")])

    parser = replace(parsers()[0], seeds=(b"one 7\ntwo 7\nthree\n",), form="text", read=read)
    refused, failure = judge(parser, b"about 7 of them", tmp_path)
    assert not refused and failure and failure.error == f"KeyError: {PLANTED!r}"
    assert shrink(failure.content, lambda content: judge(parser, content, tmp_path)[1] is not None) == b"7"
    assert judge(parser, b"good", tmp_path) == (True, None)
    refused, failure = judge(parser, b"x", tmp_path)
    assert refused and failure and failure.error == "a refusal without a mistake"


def test_an_unknown_parser_is_refused() -> None:
    """The cure names the nearest one."""
    with pytest.raises(ScenarioError, match="did you mean 'plan'"):
        fuzz(1, 0, ["plans"])

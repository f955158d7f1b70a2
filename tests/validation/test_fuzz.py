"""The fuzzer: its own files are valid, it finds what is planted, and it finds nothing in our parsers."""

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

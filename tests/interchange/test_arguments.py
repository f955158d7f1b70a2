"""Arguments in shell text: arrays, variables, continued lines and comments give what the shell would give."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chinchilla_sim.interchange.arguments import parse_arguments


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("--num-layers 24 --bf16 --lr=1e-4", {"num-layers": ("24",), "bf16": (), "lr": ("1e-4",)}),
        ("python run.py --a 1 \\\n  --b 2 # three\n  --c 3", {"a": ("1",), "b": ("2",), "c": ("3",)}),
        ("ARGS=(\n  --a 1 # first\n  --b\n)\npython run.py ${ARGS[@]}", {"a": ("1",), "b": ()}),
        ('ARGS="\n --a 1 \\\n --b x"\npython run.py $ARGS --c 2', {"a": ("1",), "b": ("x",), "c": ("2",)}),
        ("TP=4; export PP=${MISSING:-2}\nrun --t $TP --p ${PP} --q $OTHER", {"t": ("4",), "p": ("2",), "q": ("$OTHER",)}),
        ("torchrun --nproc_per_node 8 train.py --a 1 2>&1 | tee log", {"nproc-per-node": ("8",), "a": ("1", "2")}),
        ("--a\n1\n--b\n--c\ntext", {"a": ("1",), "b": (), "c": ("text",)}),
        ("--betas 0.9 0.95 $MORE\necho done", {"betas": ("0.9", "0.95")}),
    ],
)
def test_shell_text(text: str, expected: dict[str, tuple[str, ...]]) -> None:
    """Each way in which people write arguments."""
    assert parse_arguments(text).values == expected


def test_two_values_of_one_key_are_a_contradiction() -> None:
    """The same twice is nothing to tell; another value is."""
    found = parse_arguments("run --a 1 --b 2\nrun --a 1 --b 3")
    assert found.contradictions == {"b": {("2",), ("3",)}}


@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=80))
def test_any_text_is_read_or_refused(text: str) -> None:
    """Nothing but ValueError comes out, and keys have no dashes in front."""
    try:
        found = parse_arguments(text)
    except ValueError:
        return
    assert all(key and not key.startswith("-") for key in found.values)

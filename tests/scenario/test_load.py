"""Reading scenario files: overrides, paths, errors with their places, and the round trip through plan.json."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chinchilla_sim.errors import ScenarioError
from chinchilla_sim.scenario.load import load_scenario, parse_scenario

GOOD = """
question = "Does the small node help?"

[model]
factory = "nets/mlp.py:build"
options = { widths = [784, 512, 10], dropout = 0.1 }

[job]
global_batch_size = 128

[[cluster.nodes]]
name = "big"
count = 2
peak = "10 Tflop/s"
memory = "16 GiB"
price = "2 USD/h"

[[cluster.nodes]]
name = "small"
device = "a100"

[cluster.network]
bandwidth = "10 Gbit/s"
latency = "50 us"
"""


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """A scenario file without mistakes."""
    return write(tmp_path, GOOD)


def write(folder: Path, text: str) -> Path:
    """A scenario file with this text."""
    path = folder / "two-nodes.toml"
    path.write_text(text, encoding="utf-8")
    return path


def lines_of(path: Path, *overrides: str) -> list[str]:
    """What is wrong with a file, one line per mistake, without the path."""
    with pytest.raises(ScenarioError) as caught:
        load_scenario(path, overrides)
    assert all(line.startswith(f"{path}: ") for line in str(caught.value).splitlines())
    return [line.removeprefix(f"{path}: ") for line in str(caught.value).splitlines()]


def test_the_name_is_the_stem_of_the_file(good: Path) -> None:
    """A scenario without a name is called like its file."""
    assert load_scenario(good).name == "two-nodes"
    assert load_scenario(good, ["name=other"]).name == "other"


def test_all_mistakes_come_at_once(tmp_path: Path) -> None:
    """Shape, units, unknown keys and rules that join keys are reported together, in one error."""
    text = GOOD.replace('"10 Gbit/s"', '"10"').replace("latency", "latancy").replace("global_batch_size = 128", "epochs = 0")
    text += '[[cluster.links]]\nbetween = ["big-0", "smal"]\nbandwidth = "1 GB"\nlatency = "1 us"\n'
    text += "[search]\nminimum_ranks = 3\nmaximum_ranks = 2\n"
    assert lines_of(write(tmp_path, text)) == [
        "job.global_batch_size: is missing; write for example global_batch_size = 128",
        "job.epochs: must be at least 1, not 0; write for example epochs = 3",
        'cluster.network.bandwidth: "10" has no unit; write for example "10 Gbit/s"',
        "cluster.network.latancy: unknown key 'latancy'; did you mean 'latency'?",
        'cluster.links.0.bandwidth: "1 GB" is a quantity of bytes, not of bandwidth; write for example "10 Gbit/s"',
        'cluster.network.latency: is missing for more than one node; write for example latency = "50 us"',
        "cluster.links.0.between.1: \"smal\" is no node or switch; did you mean 'small'?",
        "search.minimum_ranks: is 3, more than maximum_ranks = 2; write a maximum_ranks that is at least minimum_ranks",
    ]


@pytest.mark.parametrize(
    ("key", "cure"),
    [
        ("bandwith", "did you mean 'bandwidth'?"),
        ("Latency", "did you mean 'latency'?"),
        (
            "xyz",
            "known are bandwidth, latency, link, topology, rack_size, oversubscription, duplex, activation_priority, gradient_priority, "
            "backend",
        ),
    ],
)
def test_an_unknown_key_names_the_nearest_known_one(tmp_path: Path, key: str, cure: str) -> None:
    """A typing error is answered by the word that was meant, anything else by the known words."""
    assert lines_of(write(tmp_path, f"{GOOD}{key} = 1")) == [f"cluster.network.{key}: unknown key '{key}'; {cure}"]


def test_an_override_replaces_one_value(good: Path) -> None:
    """TOML values, bare words, quantities without quotes, list indices and tables that are not there yet."""
    scenario = load_scenario(
        good,
        [
            "job.global_batch_size=64",
            "job.optimizer = sgd",
            "cluster.network.bandwidth=1 Gbit/s",
            "cluster.nodes.0.count=3",
            "search.microbatch_counts=[1, 2]",
            'question="Why?"',
        ],
    )
    assert (scenario.job.global_batch_size, scenario.job.optimizer, scenario.question) == (64, "sgd", "Why?")
    assert (scenario.cluster.network.bandwidth_bytes_per_s, scenario.cluster.nodes[0].count) == (1.25e8, 3)
    assert scenario.search.microbatch_counts == (1, 2)


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("job.epochs", 'override "job.epochs" has no =; write for example "job.epochs=3"'),
        ("job.epoch=2", "job.epoch: unknown key 'epoch'; did you mean 'epochs'?"),
        (
            "cluster.nodes.2.count=2",
            "cluster.nodes.2: override needs an index of cluster.nodes, which runs from 0 to 1; write for example cluster.nodes.0",
        ),
        ("search.executable=1", "search.executable: must be true or false, not 1; write for example executable = false"),
        (
            "search.maximum_step_time=3 weeks",
            'search.maximum_step_time: "3 weeks" has the unknown unit "weeks"; write for example "200 ms"',
        ),
        (
            "search.variants=int8",
            'search.variants: must be a list, not "int8"; write for example variants = [{ prune = 0.5 }, { quantize = "bf16" }]',
        ),
        (
            "search.spot=always",
            'search.spot: is "always", but no node has a spot price; give a node spot_price = "0.9 USD/h" and '
            'time_between_interruptions = "6 h", or leave spot out',
        ),
        ("question.x=1", 'question.x: override goes into question, which is "Does the small node help?"; override the whole value'),
        (
            "search.microbatch_counts=[1",
            'search.microbatch_counts: override "[1" is not TOML; write it as in the file, for example "search.microbatch_counts=[1, 4]"',
        ),
    ],
)
def test_a_wrong_override_says_where_and_why(good: Path, override: str, line: str) -> None:
    """An override is checked like the file."""
    assert lines_of(good, override) == [line]


def test_paths_start_at_the_folder_of_the_file(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Factory file, weights, graph and data folder are absolute after loading; names are left alone."""
    monkeypatch.chdir(good.parent.parent)
    relative = Path(good.parent.name, good.name)
    scenario = load_scenario(relative, ["model.weights=../w.pt", "job.data=mnist", "search.accuracy_table=t.json"])
    assert scenario.model.factory == f"{good.parent}/nets/mlp.py:build"
    assert scenario.model.weights == f"{good.parent.parent}/w.pt"
    assert scenario.job.data == f"{good.parent}/mnist"
    assert scenario.search.accuracy_table == f"{good.parent}/t.json"
    graph = 'model={graph="g.json", format="chinchilla"}'
    assert load_scenario(relative, [graph]).model.graph == f"{good.parent}/g.json"
    names = load_scenario(relative, ["model.factory=nets.mlp:build", "job.data=digits"])
    assert (names.model.factory, names.job.data) == ("nets.mlp:build", "digits")


def test_a_syntax_error_names_its_line(tmp_path: Path) -> None:
    """TOML says where it stopped, and a forgotten quote is the usual cause."""
    [line] = lines_of(write(tmp_path, "[cluster.network]\nbandwidth = x Gbit/s\n"))
    assert line.startswith("line 2, column 13: is not TOML: Invalid value; texts and quantities stand in quotes")


def test_what_is_no_text_file_is_refused(tmp_path: Path) -> None:
    """Missing file, folder, other encoding, impossible path: an error with a cure, no traceback."""
    latin = tmp_path / "latin.toml"
    latin.write_bytes('name = "a"\nquestion = "größer?"'.encode("latin-1"))
    assert lines_of(tmp_path / "no.toml") == ["there is no such file; check the path"]
    assert lines_of(tmp_path) == ["is a folder, not a file; name the TOML file in it"]
    assert lines_of(latin) == ["line 2: is not UTF-8 text; save the file as UTF-8"]
    assert lines_of(tmp_path / "a\0b") == ["cannot be read: embedded null byte; check the path"]


def test_a_byte_order_mark_is_no_mistake(good: Path) -> None:
    """Some editors on Windows write one, and \\r\\n."""
    good.write_bytes(b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode())
    assert load_scenario(good).job.global_batch_size == 128


@pytest.mark.parametrize("text", ["a = " + "[" * 5000, ".".join("a" * 5000) + " = 1", f"[model.options]\n{'.'.join('a' * 200)} = 1"])
def test_deep_nesting_is_refused(tmp_path: Path, text: str) -> None:
    """However deep the tables, the answer is a mistake."""
    assert lines_of(write(tmp_path, text))


def test_an_embedded_scenario_must_be_a_table() -> None:
    """A plan.json that was edited by hand gets the same kind of error."""
    with pytest.raises(ScenarioError, match=r"plan.json: is no table of a scenario"):
        parse_scenario([], "plan.json")  # type: ignore[arg-type]


def test_half_characters_are_refused(good: Path) -> None:
    """What could not be printed or written to plan.json does not get in."""
    assert lines_of(good, "name=\udcff") == [r"holds '\udcff', which is half a character; write whole Unicode characters"]
    with pytest.raises(ScenarioError, match="half a character"):
        parse_scenario({"model": {"options": {"\ud800": 1}}}, "plan.json")


positive = st.floats(min_value=1e-12, max_value=1e18)


@settings(deadline=None)
@given(peak=positive, memory=positive, bandwidth=positive, latency=positive, price=positive, rate=st.floats(1e-9, 1.0))
def test_to_dict_makes_the_same_scenario_to_the_last_bit(
    peak: float, memory: float, bandwidth: float, latency: float, price: float, rate: float
) -> None:
    """plan.json embeds the scenario: written as JSON and read again it is equal, and writes the same JSON."""
    node = {"name": "a", "count": 2, "peak": f"{peak!r} Gflop/s", "memory": f"{memory!r} MiB", "price": f"{price!r} USD/h"}
    data = {
        "name": "round-trip",
        "model": {"builtin": "mnist_mlp", "options": {"dropout": rate}},
        "job": {"global_batch_size": 8, "learning_rate": rate},
        "cluster": {"nodes": [node], "network": {"bandwidth": f"{bandwidth!r} Mbit/s", "latency": f"{latency!r} us"}},
    }
    scenario = parse_scenario(data, "x.toml")
    text = json.dumps(scenario.to_dict(), allow_nan=False)
    again = parse_scenario(json.loads(text), "plan.json")
    assert again == scenario
    assert json.dumps(again.to_dict()) == text


WORDS = """
    name question nonsense
    model builtin factory formula graph options widths weights format
    job global_batch_size data seed momentum learning_rate
    cluster kind ranks nodes count device peak memory network bandwidth latency topology switches links between
    search minimum_ranks maximum_ranks schedules gradient_codecs microbatch_counts
"""
KEYS = st.sampled_from(WORDS.split())
PATHS = st.lists(KEYS | st.sampled_from("0123"), min_size=1, max_size=4).map(".".join)
TEXTS = (
    st.sampled_from(["mlp", "chain", "this-machine", "nodes", "links", "10 Gbit/s", "10", "a", "", "a.py:b", "formula", "\0"]) | st.text()
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=20,
)
TABLES = st.dictionaries(KEYS, VALUES, max_size=5)
SCENARIOS = st.fixed_dictionaries(
    {}, optional={key: TABLES | VALUES for key in ("model", "job", "cluster", "search", "name", "question", "x")}
)


@settings(max_examples=250, deadline=None)
@given(SCENARIOS)
def test_any_tables_give_a_scenario_or_a_scenario_error(data: dict[str, object]) -> None:
    """Whatever plan.json holds, nothing but ScenarioError comes out, and what passes survives to_dict."""
    try:
        scenario = parse_scenario(data, "fuzz")
    except ScenarioError as error:
        assert str(error)
    else:
        assert parse_scenario(json.loads(json.dumps(scenario.to_dict(), allow_nan=False)), "fuzz") == scenario


TOML_PIECES = st.lists(
    st.sampled_from(
        [*GOOD.splitlines(), "[", "]", "{", "}", "=", '"', "'", "\n", "[[", "nan", "1979-05-27", "9" * 5000, "job", ".", "#", "\\"]
    )
    | st.text(max_size=8),
    max_size=30,
).map("\n".join)


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text() | TOML_PIECES, override=st.text() | st.builds("{}={}".format, st.text("abj.0", max_size=6), st.text(max_size=6)))
def test_any_text_gives_a_scenario_or_a_scenario_error(tmp_path: Path, text: str, override: str) -> None:
    """No file and no override ends in a traceback."""
    path = tmp_path / "fuzz.toml"
    path.write_bytes(text.encode())
    try:
        load_scenario(path, [override])
    except ScenarioError as error:
        assert str(error)


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(override=st.builds("{}={}".format, PATHS, TEXTS | st.text('[]{}"=,1a ')))
def test_any_override_of_a_good_file_gives_a_scenario_or_a_scenario_error(good: Path, override: str) -> None:
    """An override may break any value, and only ScenarioError comes out."""
    try:
        load_scenario(good, [override])
    except ScenarioError as error:
        assert str(error)

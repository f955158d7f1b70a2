"""The catalogue: every entry parses, says where it is from, and unknown names meet their nearest one."""

import re
import tomllib
from importlib.resources import files
from typing import Any

import pytest

from chinchilla_sim.cluster.catalogue import (
    catalogue_digest,
    device_names,
    find_backend,
    find_device,
    find_link,
    node_collectives,
    source_of,
)
from chinchilla_sim.cluster.curves import CollectiveTables
from chinchilla_sim.cost.collective import interpolate_s
from chinchilla_sim.errors import ScenarioError
from chinchilla_sim.scenario.schema import NodeSpec

FOLDER = files("chinchilla_sim.cluster")
RAW: dict[str, Any] = tomllib.loads(FOLDER.joinpath("catalogue.toml").read_text() + FOLDER.joinpath("collectives.toml").read_text())
ENTRIES = [(kind, name) for kind in ("devices", "links", "backends", "collectives") for name in RAW[kind]]
MEASURED = ["a100-sxm-80gb", "a800-sxm-80gb", "h100-sxm-80gb", "h200-sxm"]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("name", device_names())
def test_every_device_has_every_precision(name: str, precision: str) -> None:
    """Each device computes at each precision a scenario may ask for, with rates below its datasheet's."""
    device = find_device(name, precision, "here")
    assert 0 < device.flop_per_s < float("inf") and 0 < device.memory_bytes < float("inf")
    assert 0 < device.memory_bandwidth_bytes_per_s < float("inf") and device.power_watt > 0
    assert 0 < RAW["devices"][name]["compute_efficiency"] <= 1 and 0 < RAW["devices"][name]["memory_efficiency"] <= 1


@pytest.mark.parametrize(("kind", "name"), ENTRIES)
def test_every_entry_names_source_and_date(kind: str, name: str) -> None:
    """A figure without origin and ISO date is no fact."""
    entry = RAW[kind][name]
    assert len(entry["source"]) > 20
    assert re.fullmatch(r"\d{4}-\d{2}(-\d{2})?", entry["date"])
    assert source_of(kind, name) == f"{name}: {entry['source']} ({entry['date']})"


def test_every_link_and_backend_parses() -> None:
    """Links have latency and bandwidth; backends never shrink a message."""
    assert all(find_link(name).latency_s > 0 and find_link(name).bandwidth_bytes_per_s > 0 for name in RAW["links"])
    assert all(find_backend(name).header_factor >= 1 and find_backend(name).collective_segment_bytes > 0 for name in RAW["backends"])


def test_a100_by_hand() -> None:
    """79 % of 312 Tflop/s and 75 % of 2,039 GB/s, 80 GB, 3.1 us a kernel."""
    device = find_device("a100-sxm-80gb", "bf16", "here")
    assert (device.flop_per_s, device.memory_bandwidth_bytes_per_s) == (pytest.approx(0.79 * 312e12), pytest.approx(0.75 * 2039e9))
    assert (device.memory_bytes, device.forward_launch_s) == (80e9, pytest.approx(3.1e-6))


@pytest.mark.parametrize(
    ("name", "cure"),
    [
        ("a100-sxm-80g", "did you mean 'a100-sxm-80gb'?"),
        ("h100-80gb", "did you mean 'h100-sxm-80gb'?"),
        ("abacus", "known: a10, a100-pcie-40gb"),
    ],
)
def test_unknown_device_meets_its_nearest_name(name: str, cure: str) -> None:
    """A misspelt device offers the nearest name, a strange one lists what there is; the place is the user's key."""
    with pytest.raises(ScenarioError) as caught:
        find_device(name, "fp32", "cluster.nodes.0.device")
    mistake = caught.value.mistakes[0]
    assert mistake.where == "cluster.nodes.0.device" and mistake.cure.startswith(cure)


def test_digest_is_of_the_file() -> None:
    """The same catalogue has the same digest."""
    assert catalogue_digest() == catalogue_digest() and len(catalogue_digest()) == 64


def test_example_of_the_schema_is_in_the_catalogue() -> None:
    """The device that errors and the JSON schema tell a user to write can be written."""
    assert set(NodeSpec.model_fields["device"].examples or []) <= set(device_names())


def test_family_name_meets_its_member() -> None:
    """`h100` is one of two."""
    with pytest.raises(ScenarioError, match="did you mean 'h100-pcie' or 'h100-sxm-80gb'"):
        find_device("h100", "fp32", "here")


def tables_of(device: str) -> CollectiveTables:
    """Collectives of NCCL within a node of these devices."""
    found = node_collectives(device, "nccl")
    assert found is not None
    return found[1]


@pytest.mark.parametrize("device", MEASURED)
def test_measured_collectives_grow_and_an_all_reduce_takes_longest(device: str) -> None:
    """Seconds never fall with the bytes; a reduce-scatter is no longer than the all-reduce (as measured once 5 % longer, thinned 14 %)."""
    tables = tables_of(device)
    kinds = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all")
    assert sorted(tables) == sorted((kind, count) for kind in kinds for count in (2, 4, 8))
    for table in tables.values():
        assert list(table) == sorted(table) and [s for _, s in table] == sorted(s for _, s in table)
    for count in (2, 4, 8):
        for exponent in range(8, 34):
            scattered_s, reduced_s = (interpolate_s(tables[kind, count], 2.0**exponent) for kind in ("reduce_scatter", "all_reduce"))
            assert scattered_s <= 1.15 * reduced_s


def test_narrower_links_borrow_tables() -> None:
    """An A800 has two thirds of an A100's bandwidth: the same time for two thirds of the bytes; so where only half arrives."""
    (own, borrowed, _), half = (tables_of(name) for name in MEASURED[:3]), node_collectives(MEASURED[0], "nccl", 0.5)
    assert half is not None
    for key, table in own.items():
        assert borrowed[key] == tuple((pytest.approx(size * 2 / 3), seconds) for size, seconds in table)
        assert half[1][key] == tuple((size / 2, seconds) for size, seconds in table)


def test_other_links_and_backends_have_no_tables() -> None:
    """PCI Express was not measured, and other libraries are not NCCL."""
    assert node_collectives("a100-pcie-80gb", "nccl") is None
    assert node_collectives("a100-sxm-80gb", "gloo") is None

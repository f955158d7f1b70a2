"""The catalogue: every entry parses, says where it is from, and unknown names meet their nearest one."""

import re
import tomllib
from importlib.resources import files
from typing import Any

import pytest

from chinchilla_sim.cluster.catalogue import catalogue_digest, device_names, find_backend, find_device, find_link, source_of
from chinchilla_sim.errors import ScenarioError
from chinchilla_sim.scenario.schema import NodeSpec

RAW: dict[str, Any] = tomllib.loads(files("chinchilla_sim.cluster").joinpath("catalogue.toml").read_text())
ENTRIES = [(kind, name) for kind in ("devices", "links", "backends") for name in RAW[kind]]


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
    """79 % of 312 Tflop/s and 75 % of 2,039 GB/s, 79.15 GiB, 3.1 us a kernel."""
    device = find_device("a100-sxm-80gb", "bf16", "here")
    assert (device.flop_per_s, device.memory_bandwidth_bytes_per_s) == (pytest.approx(0.79 * 312e12), pytest.approx(0.75 * 2039e9))
    assert device.memory_bytes - device.usable_memory_bytes == 0.8e9
    assert (device.memory_bytes, device.forward_launch_s) == (79.15 * 2**30, pytest.approx(3.1e-6))


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

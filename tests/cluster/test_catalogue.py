"""The catalogue: every entry parses, says where it is from, and unknown names meet their nearest one."""

import re
import tomllib
from importlib.resources import files
from typing import Any

import pytest

from chinchilla_sim.cluster.catalogue import (
    KINDS,
    catalogue_digest,
    device_names,
    entries,
    find_backend,
    find_device,
    find_link,
    node_collectives,
    price_source_of,
    source_of,
)
from chinchilla_sim.cluster.curves import CollectiveTables
from chinchilla_sim.cost.collective import interpolate_s
from chinchilla_sim.errors import ScenarioError
from chinchilla_sim.scenario.cluster import IntraNodeSpec, LinkSpec, NetworkSpec, NodeSpec
from chinchilla_sim.units import parse_bandwidth, parse_bytes, parse_flop_per_s, parse_usd_per_s, parse_watt

FOLDER = files("chinchilla_sim.cluster")
RAW: dict[str, Any] = tomllib.loads(FOLDER.joinpath("catalogue.toml").read_text() + FOLDER.joinpath("collectives.toml").read_text())
ENTRIES = [(kind, name) for kind in ("devices", "links", "backends", "products", "kernels", "collectives") for name in RAW[kind]]
PROCESSORS = ("cpu-core", "cloud-vcpu", "laptop-core", "xeon-8480-socket", "epyc-7763-socket")
ACCELERATORS = [name for name in device_names() if name not in PROCESSORS]
FAMILIES = """
    v100-sxm2-16gb v100-sxm2-32gb v100-pcie-16gb v100-pcie-32gb v100s-pcie-32gb p100-sxm2-16gb t4 a10 a10g a30 a40
    a100-sxm-40gb a100-sxm-80gb a100-pcie-40gb a100-pcie-80gb a800-sxm-80gb h100-sxm-80gb h100-sxm-500w h100-pcie h100-nvl h800-sxm-80gb
    h20-sxm-96gb h200-sxm b200-sxm b300-sxm gb200 gb300 mi250-gcd mi250x-gcd mi300x mi325x rtx-2080-ti rtx-3070 rtx-3080 rtx-3090 rtx-4070
    rtx-4080 rtx-4090 rtx-5090 gtx-1080-ti titan-v titan-rtx quadro-rtx-6000 quadro-rtx-8000 rtx-a4000 rtx-a4500 rtx-a5000 rtx-a6000
    rtx-6000-ada l4 l40 l40s k80-gk210 tpu-v4 tpu-v5e tpu-v5p trainium1-core trainium2-core gaudi2 gaudi3 cpu-core cloud-vcpu laptop-core
    xeon-8480-socket
    nvlink-1 nvlink-2 nvlink-3 nvlink-4 nvlink-5 nvswitch-1 nvswitch-2 nvswitch-3 nvswitch-4 pcie-3-x16 pcie-4-x16 pcie-5-x16
    infiniband-fdr infiniband-edr infiniband-hdr infiniband-ndr roce-100g roce-200g roce-400g
    ethernet-1g ethernet-10g ethernet-25g ethernet-40g ethernet-100g ethernet-200g ethernet-400g
    efa-100g efa-400g efa-800g efa-3200g wifi-5 wifi-6 5g home wan-region wan-continent loopback
"""
MEASURED = ["a100-sxm-80gb", "a800-sxm-80gb", "h100-sxm-80gb", "h200-sxm"]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("name", device_names())
def test_every_device_has_every_precision(name: str, precision: str) -> None:
    """Each device computes at each precision a scenario may ask for, with rates below its datasheet's."""
    device = find_device(name, precision, "here")
    assert 0 < device.flop_per_s < float("inf") and 0 < device.memory_bytes < float("inf")
    assert 0 < device.memory_bandwidth_bytes_per_s < float("inf") and device.power_watt > 0
    entry = entries("devices")[name]
    assert 0 < entry["compute_efficiency"] <= 1 and 0 < entry["memory_efficiency"] <= 1


@pytest.mark.parametrize(("kind", "name"), ENTRIES)
def test_every_entry_names_source_and_date(kind: str, name: str) -> None:
    """A figure without origin and ISO date is no fact."""
    entry = RAW[kind][name]
    assert len(entry["source"]) > 15
    assert re.fullmatch(r"\d{4}-\d{2}(-\d{2})?", entry["date"])
    if kind in KINDS:
        told = source_of(kind, name)
        assert told.startswith(f"{name}: {entry['source']}") and told.endswith(f"({entry['date']})")


def test_every_family_is_there() -> None:
    """What planners are asked about: each class of device and link has a member."""
    assert not set(FAMILIES.split()) - set(RAW["devices"]) - set(RAW["links"])


def test_assumed_kernels_are_told_with_the_source() -> None:
    """A device without measured kernels says whose it borrows; one with its own does not."""
    assert source_of("devices", "t4").endswith("assumed equal to a100-sxm-80gb's (2019-03)")
    assert "assumed" not in source_of("devices", "h100-sxm-80gb")


@pytest.mark.parametrize("name", ACCELERATORS)
def test_figures_of_an_accelerator_are_plausible(name: str) -> None:
    """Fewer bits are never slower, fp8 at most twice as fast as 16 bits; memory, bandwidth and power as chips of these years have them."""
    entry = entries("devices")[name]
    peak = {precision: parse_flop_per_s(text) for precision, text in entry["peak"].items()}
    assert set(peak) <= {"fp32", "tf32", "fp16", "bf16", "fp8"}
    assert peak["fp32"] <= peak["bf16"] <= peak["fp16"] <= peak.get("fp8", float("inf"))
    assert peak["fp32"] <= peak.get("tf32", peak["fp32"]) <= peak["fp16"] <= 32 * peak["fp32"]
    assert 4e12 <= peak["fp32"] <= 250e12 and peak.get("fp8", peak["fp16"]) <= 2.05 * max(peak["bf16"], peak["fp16"])
    assert 8e9 <= parse_bytes(entry["memory"]) <= 310e9
    bandwidth = parse_bandwidth(entry["memory_bandwidth"])
    assert 200e9 <= bandwidth <= 8e12 and 15 <= peak["fp16"] / bandwidth <= 600
    assert 50 <= parse_watt(entry["power"]) <= 1400 and 8e9 <= peak["fp16"] / parse_watt(entry["power"]) <= 4e12
    assert entry["node_link"] in RAW["links"] and entry["products"] in RAW["products"]


@pytest.mark.parametrize("name", [name for name in RAW["devices"] if "price" in RAW["devices"][name]])
def test_prices_have_source_and_date(name: str) -> None:
    """A price without place and time says nothing."""
    entry = RAW["devices"][name]
    assert 0.01 <= parse_usd_per_s(entry["price"]) * 3600 <= 20
    assert len(entry["price_source"]) > 10 and re.fullmatch(r"\d{4}(-\d{2}(-\d{2})?)?", entry["price_date"])
    assert price_source_of(name) == f"{name}: {entry['price']}: {entry['price_source']} ({entry['price_date']})"


@pytest.mark.parametrize(
    ("link", "gbit_per_s"),
    [("ethernet-1g", 1), ("ethernet-2-5g", 2.5), ("ethernet-400g", 400), ("roce-100g", 100), ("efa-3200g", 3200), ("infiniband-ndr", 400)],
)
def test_links_between_nodes_have_the_rate_of_their_name(link: str, gbit_per_s: float) -> None:
    """Line rates of one port, each direction."""
    assert find_link(link).bandwidth_bytes_per_s == pytest.approx(gbit_per_s * 1e9 / 8)


def test_links_order_as_one_expects() -> None:
    """Each generation is faster; RDMA answers sooner than TCP, a cable sooner than the air, a region sooner than the world."""
    for family in (["nvlink-1", "nvlink-2", "nvlink-3", "nvlink-4", "nvlink-5"], ["pcie-3-x16", "pcie-4-x16", "pcie-5-x16", "pcie-6-x16"],
                   ["wifi-4", "wifi-5", "wifi-6", "wifi-7"], ["wan-world", "wan-continent", "wan-region", "wan-city"]):  # fmt: skip
        rates = [find_link(name).bandwidth_bytes_per_s for name in family]
        assert rates == sorted(set(rates))
    ordered = ["nvlink-4", "infiniband-hdr", "efa-400g", "ethernet-100g", "wifi-6", "wan-region", "5g", "wan-continent", "wan-world"]
    waits = [find_link(name).latency_s for name in ordered]
    assert waits == sorted(set(waits))


def test_a_precision_without_a_rate_is_refused() -> None:
    """An A100 has no fp8: the mistake says what it has. Products in tf32 fall back to fp32."""
    with pytest.raises(ScenarioError, match="'a100-sxm-80gb' does not compute in fp8; it has fp32, tf32, fp16, bf16"):
        find_device("a100-sxm-80gb", "fp8", "here")
    assert (find_device("l4", "fp8", "here").quantized_flop_per_s, find_device("l4", "fp8", "here").peak_flop_per_s) == (242.5e12, 121e12)
    assert find_device("t4", "tf32", "here").peak_flop_per_s == 8.1e12


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
    """The devices and links that errors and the JSON schema tell a user to write can be written."""
    assert set(NodeSpec.model_fields["device"].examples or []) <= set(device_names())
    assert {name for spec in (NetworkSpec, LinkSpec, IntraNodeSpec) for name in spec.model_fields["link"].examples or []} <= set(
        RAW["links"]
    )


def test_family_name_meets_its_member() -> None:
    """`h100` is one of four."""
    with pytest.raises(ScenarioError, match="did you mean 'h100-nvl' or 'h100-pcie' or 'h100-sxm-500w' or 'h100-sxm-80gb'"):
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

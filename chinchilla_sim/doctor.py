"""What is installed here, what this machine can do, and what would fail: one small function per question.

Every check returns its finding and changes nothing (a network namespace is made and removed again to see whether that is allowed). A check
that itself breaks is a finding too.
"""

from __future__ import annotations

import os
import shutil
import socket
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryFile

from chinchilla_sim.cluster.calibration import Calibration, cache_folder, cache_path, core_count, describe_machine, load_calibration
from chinchilla_sim.cluster.other_load import load_warning, other_load
from chinchilla_sim.errors import ChinchillaError
from chinchilla_sim.planner.signature import KEY_BYTES, key_path
from chinchilla_sim.report.tables.findings import Finding, State
from chinchilla_sim.setting import CALIBRATION_VARIABLE
from chinchilla_sim.units import format_bytes

EXTRAS = {
    "huggingface": ("transformers", "models of Hugging Face transformers from their configuration"),
    "onnx": ("onnx", "models from ONNX files"),
    "fast": ("numba", "compiled loops of the replay, a hundred times as fast"),
    "dask": ("distributed", "planning many scenarios on a Dask cluster"),
}
LEAST_MEMORY_BYTES = 2e9
LEAST_DISK_BYTES = 1e9
OLD_DAYS = 90
PORTS = 8
"""Ports that a run on this machine takes at most at once, beside those of its messages."""


def examine() -> list[Finding]:
    """Everything, in the order in which a user needs it."""
    return [finding for check in CHECKS for finding in _safely(check)]


def _safely(check: Callable[[], Finding | Sequence[Finding]]) -> Sequence[Finding]:
    try:
        found = check()
    except Exception as error:
        name = check.__name__.removeprefix("check_").replace("_", " ")
        return [Finding(name, "failed", f"cannot be looked at: {type(error).__name__}: {error}")]
    return [found] if isinstance(found, Finding) else found


def check_python() -> Finding:
    """This interpreter and package."""
    return Finding("python", "ok", f"{sys.version.split()[0]} at {sys.executable}; chinchilla-sim {_installed('chinchilla-sim')}")


def check_torch() -> Finding:
    """Whether torch can be imported: without it nothing is traced or run."""
    try:
        import torch
    except (ImportError, OSError) as error:
        return Finding("torch", "failed", f"cannot be imported: {error}", "pip install 'torch>=2.13,<2.14'")
    return Finding("torch", "ok", f"{torch.__version__}, {'with' if torch.version.cuda else 'without'} CUDA")


def check_extras() -> list[Finding]:
    """Optional packages, and what each is for."""
    found = []
    for extra, (package, purpose) in EXTRAS.items():
        there = _installed(package)
        cure = "" if there else f"pip install 'chinchilla-sim[{extra}]'"
        found.append(Finding(f"extra {extra}", "ok" if there else "missing", f"{package} {there or 'is not installed'}: {purpose}", cure))
    return found


def check_cores() -> Finding:
    """Cores: ranks of this machine have one each."""
    cores, all_cores = core_count(), os.cpu_count() or 1
    if cores == 1:
        return Finding("cores", "warning", "1: plans of several ranks share it", "allow this process more cores (taskset, --cpus)")
    return Finding("cores", "ok", f"{cores} of {all_cores}" if cores < all_cores else f"{cores}")


def check_other_load() -> Finding:
    """Whether others compute here right now: measured times would be too long."""
    cores = other_load()
    warning = load_warning(cores, "are busy with other programs")
    if cores is None:
        return Finding("other programs", "ok", "their load is not told by this system")
    if warning is None:
        return Finding("other programs", "ok", f"keep {cores:.2f} cores busy")
    return Finding("other programs", "warning", f"keep {cores:.2f} cores busy: times measured now come out too long", "end them first")


def check_memory() -> Finding:
    """Memory that is free for models."""
    free = _available_bytes()
    if free is None:
        return Finding("memory", "ok", "how much is free is not told by this system")
    few = free < LEAST_MEMORY_BYTES
    cure = "end other programs; every rank takes about 300 MB for torch alone" if few else ""
    return Finding("memory", "warning" if few else "ok", f"{format_bytes(free)} free", cure)


def check_gpus() -> Finding:
    """GPUs that torch sees."""
    import torch

    if not torch.cuda.is_available():
        return Finding("gpus", "ok", "none: jobs run on the CPU; plans for GPUs are made and simulated all the same")
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return Finding("gpus", "warning", ", ".join(names), "runs over NCCL are there but were never tried on a GPU: compare with one process")


def check_backends() -> Finding:
    """What ranks can talk through."""
    import torch.distributed as dist

    if not dist.is_available():
        return Finding("backends", "failed", "this torch has no torch.distributed", "install a build of torch with it")
    there = {"gloo": dist.is_gloo_available(), "nccl": dist.is_nccl_available(), "mpi": dist.is_mpi_available()}
    names = ", ".join(name for name, available in there.items() if available)
    if not there["gloo"]:
        return Finding("backends", "failed", f"no gloo ({names or 'none'})", "install a build of torch with gloo")
    return Finding("backends", "ok", names)


def check_loopback() -> Finding:
    """Whether ranks can meet on this machine."""
    try:
        with ExitStack() as stack:
            for _ in range(PORTS):
                listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
                stack.enter_context(socket.create_connection(listener.getsockname(), timeout=2))
    except OSError as error:
        return Finding("loopback", "failed", f"no ports on 127.0.0.1: {error}", "bring the interface lo up, or allow sockets on it")
    return Finding("loopback", "ok", f"{PORTS} free ports on 127.0.0.1 at once")


def check_threads() -> Finding:
    """OpenMP settings; ranks have their own."""
    from chinchilla_sim.runtime.launching.launch import RANK_ENVIRONMENT

    names = [name for name in RANK_ENVIRONMENT if name.startswith("OMP_")]
    own = ", ".join(f"{name}={RANK_ENVIRONMENT[name]}" for name in names)
    here = ", ".join(f"{name}={os.environ[name]}" for name in names if name in os.environ) or "nothing set here"
    return Finding("threads", "ok", f"{here}; ranks are started with {own}")


def check_testbed() -> Finding:
    """Whether nodes and links can be emulated: root, /dev/net/tun, network namespaces."""
    from chinchilla_sim.runtime.emulated.namespaces import why_unavailable

    why = why_unavailable()
    if why:
        return Finding("testbed", "missing", f"nodes cannot be emulated: this process {why}", "run as root on Linux with these")
    return Finding("testbed", "ok", "root, /dev/net/tun and network namespaces: nodes and links can be emulated")


def check_cgroups() -> Finding:
    """Whether emulated nodes can have less than a core."""
    from chinchilla_sim.runtime.emulated.namespaces import cpu_controller

    try:
        folder, unified = cpu_controller()
    except (ChinchillaError, OSError) as error:
        return Finding("cgroups", "missing", str(error), "mount one, or leave cpu_share out")
    name = f"version {2 if unified else 1} at {folder}"
    if not os.access(folder, os.W_OK):
        return Finding(
            "cgroups", "missing", f"{name} cannot be written: cpu_share cannot be emulated", "run as root, or leave cpu_share out"
        )
    return Finding("cgroups", "ok", f"{name}: cpu_share can be emulated")


def check_cache() -> Finding:
    """The folder of calibrations and its disk."""
    folder = cache_folder()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        with TemporaryFile(dir=there):
            pass
    except OSError as error:
        cure = "set CHINCHILLA_CACHE to a folder that you may write"
        return Finding("cache", "warning", f"{folder} cannot be written ({error.strerror}): no calibration is kept", cure)
    free = shutil.disk_usage(there).free
    few = free < LEAST_DISK_BYTES
    cure = "free some space, or set CHINCHILLA_CACHE to another disk" if few else ""
    return Finding("cache", "warning" if few else "ok", f"{folder}, {format_bytes(free)} free", cure)


def check_calibration() -> Finding:
    """What was measured of this machine, how long ago, and beside what."""
    named = os.environ.get(CALIBRATION_VARIABLE)
    path = Path(named) if named else cache_path(describe_machine(version("torch")))
    if not path.exists():
        cure = "chinchilla calibrate (about 40 s, while nothing else runs)"
        return Finding("calibration", "warning", "none of this machine: the catalogue's figures are used, which may be far off", cure)
    try:
        calibration = load_calibration(path)
    except ChinchillaError as error:
        return Finding("calibration", "warning", str(error), "delete it, then chinchilla calibrate")
    state, words, cure = _judge_calibration(calibration)
    return Finding("calibration", state, f"{path}, of {calibration.date}, up to {max(calibration.devices)} busy ranks{words}", cure)


def _judge_calibration(calibration: Calibration) -> tuple[State, str, str]:
    """State, what is to say, and the cure."""
    cure = "chinchilla calibrate, while nothing else runs"
    age_days = (date.today() - date.fromisoformat(calibration.date)).days
    if calibration.key != describe_machine(version("torch")):
        return "warning", f"; it is of another machine ({calibration.key.cpu}, torch {calibration.key.torch})", cure
    if not calibration.covers(core_count()):
        return "warning", f", of {core_count()} cores", f"{cure} (--ranks {core_count()})"
    if load_warning(calibration.other_cores, "were busy"):
        return "warning", f", measured while other programs kept {calibration.other_cores:.2f} cores busy", cure
    if age_days > OLD_DAYS:
        return "warning", f", {age_days} days old", cure
    return "ok", f", {age_days} days old", ""


def check_signing_key() -> Finding:
    """The key by which plans of a user's own code are known to be made here."""
    path = key_path()
    if not path.exists():
        return Finding("signing key", "ok", f"none yet: {path} is made with the first plan of your own code")
    about = path.stat()
    private = about.st_uid == os.geteuid() and not stat.S_IMODE(about.st_mode) & 0o077
    if private and about.st_size == KEY_BYTES:
        return Finding("signing key", "ok", f"{path}, private")
    found = f"{path} can be read by others, or is damaged: plans that were signed with it need --allow-factory"
    return Finding("signing key", "warning", found, f"chmod 600 {path}, or delete it: a new one is made")


def check_examples() -> Finding:
    """Whether the scenarios that belong to the package are there."""
    from chinchilla_sim.examples import example_folder, list_examples

    try:
        return Finding("examples", "ok", f"{len(list_examples())} in {example_folder()}")
    except ChinchillaError as error:
        return Finding("examples", "warning", str(error), "install the package again")


def _installed(package: str) -> str:
    """Its version, or nothing."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _available_bytes() -> float | None:
    """Free memory as Linux tells it, and no more than the container's limit leaves."""
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        free = 1024.0 * float(lines["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):
        return None
    return min([free, *_container_bytes()])


def _container_bytes() -> Iterator[float]:
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            yield float((Path("/sys/fs/cgroup") / limit).read_text()) - float((Path("/sys/fs/cgroup") / used).read_text())
        except (OSError, ValueError):
            continue


CHECKS: tuple[Callable[[], Finding | Sequence[Finding]], ...] = (
    check_python, check_torch, check_backends, check_loopback, check_cores, check_memory, check_other_load, check_threads, check_gpus,
    check_calibration, check_cache, check_signing_key, check_testbed, check_cgroups, check_examples, check_extras,
)  # fmt: skip

"""Checkpoints of a run on disk; no torch.

    <run folder>/checkpoints/step-00000100/
        __<process>_<n>.distcp, .metadata   tensors, as torch.distributed.checkpoint writes them
        manifest.json                       sizes and SHA-256 of all the others; written last, in one move

A folder without a manifest is half a checkpoint, and nobody reads it. The last two whole ones are kept.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chinchilla_sim.errors import RunError
from chinchilla_sim.scenario.job import JobSpec

FOLDER = "checkpoints"
MANIFEST = "manifest.json"
RESUME_FILE = "resume.json"
"""In a run's folder: where the checkpoints of the run that it continues are."""

KEPT = 2
_PREFIX, _BROKEN = "step-", "broken-"
_BLOCK_BYTES = 1 << 20

Entry = tuple[int, str]
"""Bytes and SHA-256 of a file."""


def checkpoint_path(root: Path, step: int) -> Path:
    """Where the checkpoint behind so many steps lies."""
    return root / f"{_PREFIX}{step:08d}"


def step_of(path: Path) -> int:
    """Inverse of `checkpoint_path`."""
    return int(path.name.removeprefix(_PREFIX))


def sealed_checkpoints(root: Path) -> list[Path]:
    """Checkpoints that were written to their end, the newest first; their contents are not looked at."""
    found = [path.parent for path in root.glob(f"{_PREFIX}*/{MANIFEST}") if path.parent.name.removeprefix(_PREFIX).isdecimal()]
    return sorted(found, key=step_of, reverse=True)


def newest_step(root: Path) -> int:
    """Steps behind which the newest checkpoint was made; -1 without any."""
    return next(map(step_of, sealed_checkpoints(root)), -1)


def digest(path: Path) -> Entry:
    """Size and checksum of a file."""
    sha, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            sha.update(block)
            size += len(block)
    return size, sha.hexdigest()


def seal(path: Path, entries: Mapping[str, Entry], job: Mapping[str, Any]) -> None:
    """Declare a checkpoint of a job (`job_facts`) whole."""
    partial = path / (MANIFEST + ".partial")
    with partial.open("w") as file:
        json.dump(
            {"format": "chinchilla-checkpoint", "version": 1, "step": step_of(path), "job": dict(job), "files": dict(entries)},
            file,
            indent=1,
        )
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path / MANIFEST)


def why_broken(path: Path) -> str | None:
    """What is wrong with a sealed checkpoint; None where every file is as it was written."""
    try:
        manifest: dict[str, Any] = json.loads((path / MANIFEST).read_text())
        entries = {name: (size, sha) for name, (size, sha) in manifest["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST} cannot be read ({type(error).__name__})"
    if manifest.get("step") != step_of(path):
        return f"{MANIFEST} is of step {manifest.get('step')}"
    for name, (size, sha) in entries.items():
        file = path / name
        if Path(name).name != name or not file.is_file():
            return f"{name} is missing"
        found = digest(file)
        if found[0] != size:
            return f"{name} has {found[0]} of {size} bytes"
        if found[1] != sha:
            return f"the bytes of {name} have changed"
    return None


def newest_whole(root: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that is as it was written, and what is wrong with newer ones."""
    wrong: list[str] = []
    for path in sealed_checkpoints(root):
        reason = why_broken(path)
        if reason is None:
            return path, wrong
        wrong.append(f"{path}: {reason}")
    return None, wrong


def require_whole(root: Path) -> Path:
    """The same; a RunError where there is none."""
    path, wrong = newest_whole(root)
    if path is None:
        found = "; ".join(wrong) or f"{root} holds no checkpoint that was written to its end"
        raise RunError(f"nothing to resume: {found}; run the job from its start, or name the folder of another run")
    return path


def job_facts(job: JobSpec) -> dict[str, Any]:
    """What must be the same when a job goes on: seed and batch find its data again, the optimizer's state is of its kind."""
    return {"seed": job.seed, "global_batch_size": job.global_batch_size, "optimizer": job.optimizer}


def check_job(path: Path, job: JobSpec) -> None:
    """RunError where a whole checkpoint is of another job, or leaves nothing to do."""
    before, now = json.loads((path / MANIFEST).read_text()).get("job", {}), job_facts(job)
    for key, value in now.items():
        if before.get(key) != value:
            raise RunError(f"{path} is of a run with job.{key} = {before.get(key)}, not {value}: it can only be resumed with the same")
    limit = job.total_steps
    if limit is not None and limit <= step_of(path):
        raise RunError(f"{path} is behind {step_of(path)} steps, and the job has {limit}: raise job.steps to go on")


def set_aside(root: Path, chosen: Path | None) -> None:
    """Remove what was not written to its end, and take what is newer than the chosen one out of the way, so that its place is free."""
    for path in root.glob(f"{_PREFIX}*"):
        if not (path / MANIFEST).exists():
            shutil.rmtree(path, ignore_errors=True)
        elif chosen is None or path.name > chosen.name:
            target = path.with_name(_BROKEN + path.name)
            shutil.rmtree(target, ignore_errors=True)
            path.rename(target)


def prune(root: Path) -> None:
    """Remove all but the last few checkpoints; the manifest goes first, so that no half one is taken for whole."""
    for path in sealed_checkpoints(root)[KEPT:]:
        (path / MANIFEST).unlink()
        shutil.rmtree(path, ignore_errors=True)


def keep_previous(root: Path) -> Path | None:
    """Before a new run in the same folder: move the checkpoints of the run before away (one run's are kept); where to, if any."""
    if not sealed_checkpoints(root):
        shutil.rmtree(root, ignore_errors=True)
        return None
    target = root.with_name(root.name + ".previous")
    shutil.rmtree(target, ignore_errors=True)
    return root.rename(target)

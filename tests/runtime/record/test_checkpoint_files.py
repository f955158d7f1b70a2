"""Checkpoints on disk: whole, half, or damaged."""

from collections.abc import Callable
from pathlib import Path

import pytest

from chinchilla_sim.errors import RunError
from chinchilla_sim.runtime.record.checkpoint_files import (
    KEPT,
    MANIFEST,
    checkpoint_path,
    digest,
    keep_previous,
    newest_step,
    newest_whole,
    prune,
    require_whole,
    seal,
    sealed_checkpoints,
    set_aside,
    why_broken,
)


def write(root: Path, step: int, sealed: bool = True) -> Path:
    """A checkpoint of two files."""
    path = checkpoint_path(root, step)
    path.mkdir(parents=True)
    for name in ("__0_0.distcp", ".metadata"):
        (path / name).write_bytes(f"{name} of {step}".encode() * 100)
    if sealed:
        seal(path, {file.name: digest(file) for file in list(path.iterdir())}, {})
    return path


def flip(path: Path) -> None:
    """Change one bit in the middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "flipped bit": (lambda path: flip(path / "__0_0.distcp"), "__0_0.distcp have changed"),
    "truncated file": (lambda path: (path / "__0_0.distcp").write_bytes(b"short"), "has 5 of"),
    "missing file": (lambda path: (path / ".metadata").unlink(), ".metadata is missing"),
    "spoilt manifest": (lambda path: (path / MANIFEST).write_text("{"), "cannot be read"),
    "manifest of another kind": (lambda path: (path / MANIFEST).write_text("[]"), "cannot be read"),
    "manifest of another step": (lambda path: path.rename(path.with_name("step-00000030")), "is of step 20"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_found_and_the_checkpoint_before_is_used(tmp_path: Path, damage: str) -> None:
    """Whatever happens to the newest checkpoint, it is passed over, and the reason named."""
    write(tmp_path, 10)
    spoil, message = DAMAGES[damage]
    spoil(write(tmp_path, 20))
    path, wrong = newest_whole(tmp_path)
    assert path == checkpoint_path(tmp_path, 10) and why_broken(path) is None
    assert len(wrong) == 1 and message in wrong[0]


def test_half_a_checkpoint_is_none(tmp_path: Path) -> None:
    """Without a manifest nothing counts; to resume from it is an error that says so."""
    write(tmp_path, 10, sealed=False)
    assert newest_step(tmp_path) == -1
    with pytest.raises(RunError, match="no checkpoint that was written to its end"):
        require_whole(tmp_path)


def test_nothing_whole_is_an_error_with_every_reason(tmp_path: Path) -> None:
    """Where all are damaged the error lists what is wrong with each."""
    for step in (10, 20):
        flip(write(tmp_path, step) / ".metadata")
    with pytest.raises(RunError, match=r"step-00000020: .*changed.*step-00000010: .*changed"):
        require_whole(tmp_path)


def test_the_last_two_are_kept(tmp_path: Path) -> None:
    """Older ones go, however many there are."""
    for step in (5, 100, 20, 1000):
        write(tmp_path, step)
    prune(tmp_path)
    assert [path.name for path in sealed_checkpoints(tmp_path)] == ["step-00001000", "step-00000100"]
    assert len(list(tmp_path.iterdir())) == KEPT


def test_the_place_of_damaged_checkpoints_is_freed(tmp_path: Path) -> None:
    """Half ones are removed, damaged newer ones moved aside, so that the run can save there again."""
    write(tmp_path, 10), write(tmp_path, 20), write(tmp_path, 30, sealed=False)
    set_aside(tmp_path, checkpoint_path(tmp_path, 10))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken-step-00000020", "step-00000010"]


def test_a_new_run_moves_the_checkpoints_of_the_one_before(tmp_path: Path) -> None:
    """A forgotten --resume loses nothing; without checkpoints nothing is moved."""
    root = tmp_path / "checkpoints"
    assert keep_previous(root) is None
    write(root, 10)
    kept = keep_previous(root)
    assert kept is not None and newest_step(kept) == 10 and not root.exists()

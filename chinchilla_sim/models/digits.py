"""Handwritten digits to train on: the 10,000 packaged ones, or a folder of standard MNIST files."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from chinchilla_sim.errors import Mistake, ScenarioError
from chinchilla_sim.models.idx import read_idx

PACKAGED = "digits"
_PACKAGED_FOLDER = Path(__file__).parent / "data"
_PACKAGED_VALIDATION_COUNT = 1_000
_SPLIT_SEED = 0


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """Images, uint8 of shape (count, rows, columns), and their labels, uint8 of shape (count,)."""

    images: NDArray[np.uint8]
    labels: NDArray[np.uint8]

    def select(self, indices: NDArray[np.intp]) -> "Samples":
        """The samples at these indices, in their order."""
        return Samples(self.images[indices], self.labels[indices])


@dataclass(frozen=True, slots=True, eq=False)
class Digits:
    """Samples to train on and, disjoint from them, samples to validate with."""

    train: Samples
    validation: Samples


def load_digits(folder: str | None = None) -> Digits:
    """The packaged digits, 9,000 and 1,000 (folder None or "digits"), or those of a folder: train-* to train, t10k-* to validate.

    A folder holds MNIST's four files (train-images-idx3-ubyte, ...), also with a dot (train-images.idx3-ubyte), also with .gz.
    ScenarioError names all files that are missing, or the one that is wrong. A folder of the name "digits" is "./digits".
    """
    if folder is None or folder == PACKAGED:
        return _load_packaged()
    return _load_folder(Path(folder))


def split_stratified(labels: NDArray[np.uint8], validation_count: int, seed: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Indices to train on and to validate with, both shuffled; every label has its share (largest remainder) of validation_count."""
    # RandomState, unlike default_rng, promises the same numbers in every NumPy: accuracies stay comparable
    generator = np.random.RandomState(seed)
    order = generator.permutation(len(labels))
    is_validation = np.zeros(len(labels), dtype=bool)
    for label, share in enumerate(_shares(np.bincount(labels), validation_count)):
        is_validation[order[labels[order] == label][:share]] = True
    return generator.permutation(np.flatnonzero(~is_validation)), generator.permutation(np.flatnonzero(is_validation))


def random_shift(images: NDArray[np.uint8], generator: np.random.Generator, pixels: int) -> NDArray[np.uint8]:
    """Each image of (count, rows, columns) moved down and right by its own whole numbers in -pixels..pixels, zeros moving in.

    Draws once: `down, right = generator.integers(-pixels, pixels + 1, size=(2, count))`.
    """
    down, right = generator.integers(-pixels, pixels + 1, size=(2, len(images)))
    padded = np.pad(images, ((0, 0), (pixels, pixels), (pixels, pixels)))
    windows = sliding_window_view(padded, images.shape[1:], axis=(1, 2))
    shifted: NDArray[np.uint8] = windows[np.arange(len(images)), pixels - down, pixels - right]
    return shifted


def _shares(sizes: NDArray[np.intp], count: int) -> NDArray[np.intp]:
    """Count divided in proportion to sizes: rounded down, the rest to the largest remainders (the first on a tie)."""
    shares, remainders = np.divmod(sizes * count, sizes.sum())
    shares[np.argsort(-remainders, kind="stable")[: count - shares.sum()]] += 1
    return shares


def _load_packaged() -> Digits:
    samples = _read_samples(_PACKAGED_FOLDER / "digits-images-idx3-ubyte.gz", _PACKAGED_FOLDER / "digits-labels-idx1-ubyte.gz")
    train, validation = split_stratified(samples.labels, _PACKAGED_VALIDATION_COUNT, _SPLIT_SEED)
    return Digits(samples.select(train), samples.select(validation))


def _load_folder(folder: Path) -> Digits:
    train_images, train_labels, validation_images, validation_labels = _find_files(folder)
    digits = Digits(_read_samples(train_images, train_labels), _read_samples(validation_images, validation_labels))
    _check_same_size(digits, folder)
    return digits


def _find_files(folder: Path) -> list[Path]:
    """Images and labels to train, images and labels to validate."""
    stems = [f"{part}-{kind}" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
    found = {stem: _find_file(folder, stem) for stem in stems}
    cure = f'put it there, plain or as .gz, or use "{PACKAGED}" for the packaged digits'
    missing = [Mistake("", f"{stem}-ubyte is missing", cure) for stem, path in found.items() if path is None]
    if missing:
        raise ScenarioError(missing, source=str(folder))
    return [path for path in found.values() if path]


def _find_file(folder: Path, stem: str) -> Path | None:
    names = (f"{base}-ubyte{ending}" for base in (stem, stem.replace("-idx", ".idx")) for ending in ("", ".gz"))
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _read_samples(images_path: Path, labels_path: Path) -> Samples:
    images, labels = _read_bytes_of(images_path, 3), _read_bytes_of(labels_path, 1)
    if len(images) != len(labels):
        what = f"has {len(labels)} labels for the {len(images)} images of {images_path.name}"
        raise ScenarioError([Mistake("", what, "take both files from the same source")], source=str(labels_path))
    return Samples(images, labels)


def _read_bytes_of(path: Path, dim_count: int) -> NDArray[np.uint8]:
    items = read_idx(path)
    if items.dtype != np.uint8 or items.ndim != dim_count or not items.size:
        what = f"holds {items.dtype} of shape {items.shape} instead of some uint8 with {dim_count} dims"
        raise ScenarioError([Mistake("", what, "give the file that MNIST has under this name")], source=str(path))
    return items


def _check_same_size(digits: Digits, folder: Path) -> None:
    train_size, validation_size = digits.train.images.shape[1:], digits.validation.images.shape[1:]
    if train_size != validation_size:
        what = f"train images have {train_size} pixels, t10k images {validation_size}"
        raise ScenarioError([Mistake("", what, "take all four files from the same source")], source=str(folder))

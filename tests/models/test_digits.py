"""The digits are split fairly, shifted exactly and read from folders."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from chinchilla_sim.errors import ScenarioError
from chinchilla_sim.models.digits import Digits, load_digits, random_shift, split_stratified

WriteIdx = Callable[[Path, NDArray[Any]], Path]
PACKAGED_CLASS_SIZES = [1001, 1127, 991, 1032, 980, 863, 1014, 1070, 944, 978]


@pytest.fixture(scope="module")
def packaged() -> Digits:
    """The digits that come with the package."""
    return load_digits()


def shift_one(image: NDArray[np.uint8], down: int, right: int) -> NDArray[np.uint8]:
    """Pixel by pixel, as one would do it by hand."""
    shifted = np.zeros_like(image)
    rows, columns = image.shape
    for row in range(rows):
        for column in range(columns):
            if 0 <= row - down < rows and 0 <= column - right < columns:
                shifted[row, column] = image[row - down, column - right]
    return shifted


def test_counts(packaged: Digits) -> None:
    """9,000 images train, 1,000 validate, each 28 x 28 bytes with a label."""
    assert packaged.train.images.shape == (9000, 28, 28)
    assert packaged.validation.images.shape == (1000, 28, 28)
    assert packaged.train.images.dtype == packaged.train.labels.dtype == np.uint8
    assert (packaged.train.labels.shape, packaged.validation.labels.shape) == ((9000,), (1000,))


def test_packaged_split_is_stratified(packaged: Digits) -> None:
    """Every class gives a tenth of its images, rounded, to validation, and the rest to training."""
    validation = np.bincount(packaged.validation.labels)
    assert np.abs(validation - np.array(PACKAGED_CLASS_SIZES) / 10).max() < 1
    assert (validation + np.bincount(packaged.train.labels)).tolist() == PACKAGED_CLASS_SIZES


def test_packaged_split_is_disjoint(packaged: Digits) -> None:
    """All 10,000 packaged images differ, so none validates what it trained."""
    images = np.concatenate([packaged.train.images, packaged.validation.images])
    assert len({image.tobytes() for image in images}) == 10_000


def test_packaged_split_is_the_same_every_time(packaged: Digits) -> None:
    """The name "digits" means the packaged ones, and loading again gives the same order."""
    again = load_digits("digits")
    np.testing.assert_array_equal(again.train.images, packaged.train.images)
    np.testing.assert_array_equal(again.validation.labels, packaged.validation.labels)


def test_packaged_split_is_pinned(packaged: Digits) -> None:
    """The first labels do not change with a release of NumPy: accuracies stay comparable."""
    assert packaged.validation.labels[:12].tolist() == [8, 9, 5, 6, 9, 5, 9, 0, 3, 9, 5, 2]


def test_validation_is_shuffled(packaged: Digits) -> None:
    """A runtime that drops the incomplete last batch must not drop one class with it."""
    assert len(np.unique(packaged.validation.labels[-40:])) >= 8


@given(labels=st.lists(st.integers(0, 5), min_size=1, max_size=60), fraction=st.floats(0, 1), seed=st.integers(0, 2**32 - 1))
def test_split_laws(labels: list[int], fraction: float, seed: int) -> None:
    """Any split holds each index once, has the size asked for, and gives each class its share within one."""
    count = int(fraction * len(labels))
    array = np.array(labels, dtype=np.uint8)
    train, validation = split_stratified(array, count, seed)
    assert sorted([*train, *validation]) == list(range(len(labels)))
    assert len(validation) == count
    for label in set(labels):
        assert abs(np.sum(array[validation] == label) - count * labels.count(label) / len(labels)) < 1


def test_other_seed_other_split() -> None:
    """The seed chooses who validates."""
    labels = np.repeat(np.arange(10, dtype=np.uint8), 20)
    assert set(split_stratified(labels, 20, seed=0)[1]) != set(split_stratified(labels, 20, seed=1)[1])


@given(rows=st.integers(1, 6), columns=st.integers(1, 6), pixels=st.integers(0, 7), seed=st.integers(0, 1000))
def test_random_shift_equals_the_slow_reference(rows: int, columns: int, pixels: int, seed: int) -> None:
    """The vectorised shift moves each image as a loop over its pixels does, even wholly out of sight."""
    images = np.random.default_rng(seed).integers(1, 256, size=(9, rows, columns), dtype=np.uint8)
    down, right = np.random.default_rng(seed).integers(-pixels, pixels + 1, size=(2, 9))
    expected = [shift_one(image, y, x) for image, y, x in zip(images, down, right, strict=True)]
    np.testing.assert_array_equal(random_shift(images, np.random.default_rng(seed), pixels), expected)


def test_random_shift_keeps_ink_inside_the_margin() -> None:
    """With a margin as wide as the shift no ink is lost, and none is made."""
    images = np.pad(np.random.default_rng(1).integers(256, size=(500, 5, 5), dtype=np.uint8), ((0, 0), (2, 2), (2, 2)))
    shifted = random_shift(images, np.random.default_rng(2), 2)
    np.testing.assert_array_equal(shifted.sum(axis=(1, 2)), images.sum(axis=(1, 2)))


def test_random_shift_uses_every_direction_alike() -> None:
    """A single dot lands on each of its 25 places, about equally often."""
    dot = np.zeros((25_000, 5, 5), dtype=np.uint8)
    dot[:, 2, 2] = 1
    landed = random_shift(dot, np.random.default_rng(3), 2).sum(axis=0, dtype=np.int64)
    assert landed.sum() == 25_000
    assert 850 < landed.min() <= landed.max() < 1150


def test_random_shift_leaves_its_input(packaged: Digits) -> None:
    """Epochs draw from the same images: shifting makes new ones."""
    before = packaged.validation.images.copy()
    random_shift(packaged.validation.images, np.random.default_rng(0), 2)
    np.testing.assert_array_equal(packaged.validation.images, before)


def test_random_shift_is_fast(packaged: Digits) -> None:
    """An epoch of 9,000 images takes less than 100 ms (best of five, because neighbours disturb)."""

    def shift_s() -> float:
        start_s = time.perf_counter()
        random_shift(packaged.train.images, np.random.default_rng(0), 2)
        return time.perf_counter() - start_s

    assert min(shift_s() for _ in range(5)) < 0.1


def test_folder_is_read_instead(mnist_folder: Path) -> None:
    """train-* trains and t10k-* validates, in the order of the files, whichever way they are spelled."""
    digits = load_digits(str(mnist_folder))
    assert digits.train.images.shape == (30, 4, 5)
    assert digits.validation.images.shape == (12, 4, 5)
    expected = np.random.default_rng(7).integers(256, size=(30, 4, 5), dtype=np.uint8)
    np.testing.assert_array_equal(digits.train.images, expected)


def test_all_missing_files_are_named(mnist_folder: Path) -> None:
    """One error lists every file that the folder lacks."""
    (mnist_folder / "train-labels.idx1-ubyte").unlink()
    (mnist_folder / "t10k-images.idx3-ubyte.gz").unlink()
    with pytest.raises(ScenarioError) as caught:
        load_digits(str(mnist_folder))
    assert [mistake.what for mistake in caught.value.mistakes] == [
        "train-labels-idx1-ubyte is missing",
        "t10k-images-idx3-ubyte is missing",
    ]


@pytest.mark.parametrize(
    ("name", "items", "message"),
    [
        ("train-labels.idx1-ubyte", np.zeros(29, np.uint8), "has 29 labels for the 30 images of train-images-idx3-ubyte"),
        ("train-labels.idx1-ubyte", np.zeros(30, np.int32), r"holds int32 of shape \(30,\)"),
        ("train-images-idx3-ubyte", np.zeros((30, 20), np.uint8), "instead of some uint8 with 3 dims"),
        ("train-images-idx3-ubyte", np.zeros((0, 4, 5), np.uint8), "instead of some uint8 with 3 dims"),
        ("train-images-idx3-ubyte", np.zeros((30, 5, 4), np.uint8), r"train images have \(5, 4\) pixels, t10k images \(4, 5\)"),
    ],
)
def test_files_that_do_not_fit_are_refused(mnist_folder: Path, write_idx: WriteIdx, name: str, items: NDArray[Any], message: str) -> None:
    """Types, dims, counts and sizes are checked when the files are read, not felt later as a crash."""
    write_idx(mnist_folder / name, items)
    with pytest.raises(ScenarioError, match=message):
        load_digits(str(mnist_folder))

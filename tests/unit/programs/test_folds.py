"""Folds: no image is in the reference that it is matched with."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from mpipar.cryoem import reconstruction, symmetry
from mpipar.cryoem.alignment import Reference, slices_of, weigh
from mpipar.cryoem.fourier import components, image_components
from mpipar.cryoem.matches import match_terms, significance
from mpipar.programs import dataset, fold_sums, folds
from tests.support import naive
from tests.support.small_refinement import small

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mpipar.programs.dataset import Dataset

BOX, COUNT = 32, 160
RADIUS, RESOLVED = 9, 7
WANTED = components(BOX, RADIUS)
SCALES = reconstruction.fixed_point(1e4, 1e3, COUNT)
CURVE = np.full(BOX // 2 + 1, 0.9)
TURNS = Rotation.random(COUNT, random_state=1).as_matrix()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    made = small(tmp_path_factory.mktemp("input"), count=COUNT, box=BOX).data
    return dataclasses.replace(made, start_shell=3)


def weighted(images: NDArray[np.float32]) -> NDArray[np.float32]:
    """White noise of power 1, no contrast transfer."""
    transforms = image_components(images, WANTED) / BOX
    one = np.ones(len(WANTED.shell), np.float32)
    return weigh(transforms, np.broadcast_to(one, transforms.shape), one)


def sums_of(data: Dataset, values: NDArray[np.float32]) -> dict[str, NDArray[np.int64]]:
    """The sums of each fold, of images in the poses TURNS."""
    found = {}
    for half in (1, 2):
        for fold in range(dataset.FOLDS):
            mine = (data.half == half) & (data.fold == fold)
            sums = reconstruction.empty_sums(RADIUS)
            reconstruction.insert(sums, values[mine], TURNS[mine], WANTED, SCALES)
            found[f"half{half}.{fold}"] = sums
    return found


def whole(sums: dict[str, NDArray[np.int64]]) -> dict[str, NDArray[np.int64]]:
    return {f"half{half}": fold_sums.added_up(sums, half) for half in (1, 2)}


def added(data: Dataset, sums: dict[str, NDArray[np.int64]]) -> fold_sums.FoldSums:
    """What rank 0 makes of sums that come to it in pieces."""
    totals = fold_sums.FoldTotals({name: array.shape for name, array in sums.items()}, SCALES)
    for name, array in sums.items():
        for start in range(0, array.size, 1000):
            totals.take(name, start, array.reshape(-1)[start : start + 1000])
    return totals.finished(data.symmetry, data.geometry.box)


def references(data: Dataset, sums: dict[str, NDArray[np.int64]]) -> NDArray[np.float32]:
    return folds.references_of(data, added(data, sums), CURVE, (RADIUS, RESOLVED), None)


def noise() -> NDArray[np.float32]:
    return np.random.default_rng(5).normal(size=(COUNT, BOX, BOX)).astype(np.float32)


def test_folds_are_even_parts_of_each_half_set_and_neighbours_are_together() -> None:
    half = np.tile([1, 2, 2], 40).astype(np.int8)
    fold = dataset.folds_of(half, 1)
    for number in (1, 2):
        mine = fold[half == number]
        assert (np.diff(mine) >= 0).all()
        sizes = np.bincount(mine)
        assert len(sizes) == dataset.FOLDS
        assert np.ptp(sizes) <= 1
    first = np.arange(len(half)) % 60  # each image stands in the list twice
    with_copies = dataset.folds_of(half, 1, first=first)
    assert np.array_equal(with_copies[:60], with_copies[60:])
    assert len(np.unique(with_copies)) == dataset.FOLDS
    blocks = dataset.blocks_of(half, fold)
    assert sorted(np.concatenate(blocks)) == list(range(len(half)))
    assert all(len(np.unique(10 * half[rows] + fold[rows])) == 1 for rows in blocks)


@pytest.mark.parametrize(
    ("count", "order", "expected"),
    [
        (2 * dataset.MOST_FOLDED, 1, dataset.FOLDS),
        (2 * dataset.MOST_FOLDED + 2, 1, 1),
        (320, 60, dataset.FOLDS),
        (400, 60, 1),
        (4, 1, 2),
        (1, 1, 1),
    ],
)
def test_folds_are_for_few_slices(count: int, order: int, expected: int) -> None:
    half = np.resize(np.array([1, 2], np.int8), count)
    assert len(np.unique(dataset.folds_of(half, order))) == expected


def test_large_sums_are_not_kept_by_fold(data: Dataset) -> None:
    assert folds.sums_are_folded(data, 16)
    assert not folds.sums_are_folded(data, 256)
    one = dataclasses.replace(data, fold=0 * data.fold)
    assert not folds.sums_are_folded(one, 16)


def test_no_reference_changes_with_the_images_of_its_own_fold(data: Dataset) -> None:
    values = weighted(noise())
    before = references(data, sums_of(data, values))
    assert len(before) == 2 * dataset.FOLDS
    changed = (data.half == 2) & (data.fold == 1)
    values[changed] *= -3
    after = references(data, sums_of(data, values))
    own = dataset.FOLDS + 1
    for number, (one, other) in enumerate(zip(before, after, strict=True)):
        assert np.array_equal(one, other) == (number == own)


def test_one_fold_has_the_half_maps(data: Dataset) -> None:
    sums = sums_of(data, weighted(noise()))
    found = references(data, whole(sums))
    assert len(found) == 2
    by_fold = references(data, sums)
    for half, parts in zip(
        found, (by_fold[: dataset.FOLDS], by_fold[dataset.FOLDS :]), strict=True
    ):
        assert np.corrcoef(half.ravel(), parts.mean(axis=0).ravel())[0, 1] > 0.95


def own_significance(data: Dataset, found: NDArray[np.float32]) -> NDArray[np.float64]:
    """Of each image at the pose at which it went into the sums, against its own reference."""
    values, result = weighted(noise()), np.empty(COUNT)
    made = folds.transforms(found, RADIUS)
    frequencies = WANTED.frequencies
    for n in range(COUNT):
        transforms = made[f"reference{data.half[n]}"]
        transform = transforms[data.fold[n] % len(transforms)]
        reference = Reference(transform, RADIUS, BOX)
        flat = slices_of(reference, TURNS[n : n + 1], frequencies).view(np.complex64)
        terms = match_terms(flat, np.ones_like(flat), values[n : n + 1])
        result[n] = significance(*terms)[0]
    return result


def test_noise_does_not_match_itself(data: Dataset) -> None:
    """An image of noise matches the half map that it is in, at its own pose, and only there."""
    sums = sums_of(data, weighted(noise()))
    with_itself = own_significance(data, references(data, whole(sums)))
    without = own_significance(data, references(data, sums))
    assert with_itself.mean() > 1.5
    assert abs(without.mean()) < 4 / np.sqrt(COUNT)
    assert 0.7 < without.std() < 1.3


def test_small_boxes_of_references_lose_nothing(
    data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    molecule = naive.blobs(BOX)
    images = np.stack([50 * molecule.image(BOX, turn, (0.0, 0.0)) for turn in TURNS])
    sums = whole(sums_of(data, weighted(images.astype(np.float32))))
    radius = 5  # slices of a coarser reference, which has room around its detail
    coarse = {name: crop(array, radius) for name, array in sums.items()}

    def made() -> tuple[int, dict[str, NDArray[np.generic]]]:
        volumes = folds.references_of(data, added(data, coarse), CURVE, (radius, radius - 1), None)
        return volumes.shape[1], folds.transforms(volumes, radius - 1)

    monkeypatch.setattr(folds, "ROOM", 6)
    smaller, found = made()
    assert smaller < BOX
    monkeypatch.setattr(folds, "ROOM", BOX)
    same, expected = made()
    assert same == BOX
    for name in ("reference1", "reference2"):
        scale = np.abs(expected[name]).max()
        np.testing.assert_allclose(found[name] / scale, expected[name] / scale, atol=3e-3)


def crop(sums: NDArray[np.int64], radius: int) -> NDArray[np.int64]:
    depth, _, width, _ = reconstruction.sums_shape(radius)
    low = sums.shape[0] // 2 - depth // 2
    inner = slice(low, low + depth)
    return np.ascontiguousarray(sums[inner, inner, :width])


@pytest.mark.parametrize(("box", "radius", "expected"), [(64, 32, 64), (64, 14, 44), (256, 20, 56)])
def test_reference_box_is_even_and_has_room(box: int, radius: int, expected: int) -> None:
    found = folds.reference_box(box, radius)
    assert found % 2 == 0
    assert min(box, 2 * (radius + folds.ROOM)) <= found <= box
    assert abs(found - expected) <= 4


def test_a_mask_is_brought_to_the_box_of_the_references(data: Dataset) -> None:
    sums = {name: crop(array, 5) for name, array in whole(sums_of(data, weighted(noise()))).items()}
    mask = np.zeros((BOX,) * 3, np.float32)
    mask[:, :, BOX // 2 :] = 1
    masked = dataclasses.replace(data, mask=mask)
    found = folds.references_of(masked, added(masked, sums), CURVE, (5, 4), None)
    middle = found.shape[-1] // 2
    assert middle < BOX // 2
    outside, inside = np.abs(found[..., : middle - 4]), np.abs(found[..., middle:])
    assert outside.mean() < 0.02 * inside.mean()


def test_frame_and_symmetry_are_those_of_the_half_maps(data: Dataset) -> None:
    """A symmetric data set has symmetric references, in every fold."""
    turned = dataclasses.replace(data, symmetry=symmetry.operators("c2"))
    for volume in references(turned, sums_of(data, weighted(noise()))):
        mate = volume[:, 1:, 1:][:, ::-1, ::-1]  # half a turn about z
        inner = volume[:, 1:, 1:]
        assert np.corrcoef(inner.ravel(), mate.ravel())[0, 1] > 0.98

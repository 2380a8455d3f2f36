"""MRC files: what is read is what was written, and damage is named."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mpipar.errors import InputError, MissingInputError
from mpipar.formats.mrc import Stack, read_header, read_volume, write_volume
from tests.support.blocks import noise_images, write_mrc

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


@pytest.fixture(scope="module")
def stack_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mrc(tmp_path_factory.mktemp("mrc") / "stack.mrcs", noise_images(12, 6))


def cube(box: int = 6) -> NDArray[np.float32]:
    return noise_images(box, box)


@given(
    data=st.integers(1, 6).flatmap(
        lambda n: arrays(np.float32, (n, n, n), elements=st.floats(-1e6, 1e6, width=32))
    ),
    pixel_size=st.floats(0.1, 20).map(lambda size: round(size, 3)),
)
def test_a_volume_comes_back_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, data: NDArray[np.float32], pixel_size: float
) -> None:
    path = tmp_path_factory.getbasetemp() / "round-trip.mrc"
    write_volume(path, data, pixel_size)
    volume = read_volume(path)
    assert volume.data.tobytes() == data.tobytes()
    assert volume.pixel_size == pytest.approx(pixel_size, abs=2e-5)


def test_the_same_volume_gives_the_same_bytes_and_no_date(tmp_path: Path) -> None:
    write_volume(tmp_path / "a.mrc", cube(), 1.5)
    write_volume(tmp_path / "b.mrc", cube(), 1.5)
    written = (tmp_path / "a.mrc").read_bytes()
    assert written == (tmp_path / "b.mrc").read_bytes()
    assert not written[220:1024].strip(b"\0"), "labels would carry the date"


def test_writing_replaces_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.mrc").write_bytes(b"x" * 5000)
    write_volume(tmp_path / "a.mrc", cube(), 1.5)
    assert read_volume(tmp_path / "a.mrc").data.shape == (6, 6, 6)


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 2, 1), (2, 3, 1), (2, 1, 3)])
def test_axes_are_brought_into_order_z_y_x(tmp_path: Path, order: tuple[int, int, int]) -> None:
    wanted = cube()
    # Column, row and section of the file run along these axes of (z, y, x).
    stored = wanted.transpose([3 - axis for axis in reversed(order)])
    fields: Any = dict(zip(("mapc", "mapr", "maps"), order, strict=True))
    path = write_mrc(tmp_path / "a.mrc", stored, volume=True, **fields)
    np.testing.assert_array_equal(read_volume(path).data, wanted)


@pytest.mark.parametrize(
    ("fields", "shape", "message"),
    [
        ({}, (6, 6, 5), "must be a cube"),
        ({"cella": (12, 12, 24)}, (6, 6, 6), "not cubes"),
        ({"mapc": 7}, (6, 6, 6), "axis order"),
        ({"mode": 4}, (6, 6, 6), "MRC mode 4; the modes that can be read are 0 .int8.*float16"),
        ({"mode": -3}, (6, 6, 6), "is not an MRC file"),
        ({"nz": 60, "ny": 60, "nx": 60}, (6, 6, 6), "truncated.*865024 bytes.* has 1888 bytes"),
    ],
)
def test_an_unusable_volume_is_named(
    tmp_path: Path, fields: dict[str, Any], shape: tuple[int, ...], message: str
) -> None:
    path = write_mrc(tmp_path / "bad.mrc", np.zeros(shape, np.float32), volume=True, **fields)
    with pytest.raises(InputError, match=message) as caught:
        read_volume(path)
    assert str(path) in str(caught.value)


def test_text_is_no_volume(tmp_path: Path) -> None:
    (tmp_path / "a.mrc").write_text("hello")
    with pytest.raises(InputError, match="has 5 bytes, a header alone 1024"):
        read_volume(tmp_path / "a.mrc")


def test_a_missing_volume_is_a_missing_input(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="does not exist"):
        read_volume(tmp_path / "none.mrc")
    with pytest.raises(MissingInputError, match="cannot be read"):
        read_volume(tmp_path)


def test_a_header_without_cell_has_pixel_size_zero(tmp_path: Path) -> None:
    path = write_mrc(tmp_path / "a.mrc", cube(), volume=True, cella=(0, 0, 0))
    assert read_volume(path).pixel_size == 0


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("dtype", "mode"), [("i1", 0), ("i2", 1), ("f4", 2), ("u2", 6), ("f2", 12)]
)
def test_every_mode_and_byte_order_reads_as_float32(
    tmp_path: Path, dtype: str, mode: int, order: Any
) -> None:
    images = (noise_images(5, 8) * 10).clip(0, 120).astype(dtype)
    stack = Stack(write_mrc(tmp_path / "s.mrcs", images, order=order, extended=132))
    assert read_header(stack.path).mode == mode
    assert (stack.count, stack.box, stack.pixel_size) == (5, 8, 2.0)
    read = stack.read(np.arange(5))
    assert read.dtype == np.dtype("=f4")
    np.testing.assert_array_equal(read, images.astype(np.float32))


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_wrong_machine_stamp_does_not_mislead(tmp_path: Path, order: Any) -> None:
    images = noise_images(3, 8)
    for number, stamp in enumerate([(0, 0, 0, 0), (0x44, 0x44, 0, 0), (0x11, 0x11, 0, 0)]):
        path = write_mrc(tmp_path / f"{number}.mrcs", images, order=order, machst=stamp, map=b"")
        np.testing.assert_array_equal(Stack(path).read(np.array([2])), images[2:])


@given(indices=st.lists(st.integers(0, 11), max_size=20))
def test_images_come_in_the_order_asked_for(stack_path: Path, indices: list[int]) -> None:
    stack = Stack(stack_path)
    read = stack.read(np.array(indices, dtype=np.int64))
    stack.close()
    np.testing.assert_array_equal(read, noise_images(12, 6)[indices])


def test_neighbouring_images_are_one_read(
    stack_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[tuple[int, int]] = []
    pread = os.pread

    def counted(fd: int, size: int, at: int) -> bytes:
        reads.append((size, at))
        return pread(fd, size, at)

    monkeypatch.setattr(os, "pread", counted)
    stack = Stack(stack_path)
    stack.read(np.array([5, 3, 4, 9, 4]))
    stack.close()
    assert reads == [(3 * 144, 1024 + 3 * 144), (144, 1024 + 9 * 144)]


def test_long_runs_are_cut_and_short_reads_completed(
    stack_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pread = os.pread
    monkeypatch.setattr("mpipar.formats.mrc.LARGEST_READ", 5 * 144)
    monkeypatch.setattr(os, "pread", lambda fd, size, at: pread(fd, min(size, 100), at))
    stack = Stack(stack_path)
    np.testing.assert_array_equal(stack.read(np.arange(12)), noise_images(12, 6))
    stack.close()
    np.testing.assert_array_equal(stack.read(np.array([7])), noise_images(12, 6)[7:8])
    stack.close()


def test_a_truncated_stack_says_what_it_has(tmp_path: Path) -> None:
    path = write_mrc(tmp_path / "s.mrcs", noise_images(10, 8))
    path.write_bytes(path.read_bytes()[: 1024 + 7 * 256 + 100])
    with pytest.raises(InputError, match=r"3584 bytes in all.* has 2916 bytes: 7 whole") as caught:
        Stack(path)
    assert str(path) in str(caught.value)


def test_a_stack_cut_while_open_is_an_error(tmp_path: Path) -> None:
    path = write_mrc(tmp_path / "s.mrcs", noise_images(10, 8))
    stack = Stack(path)
    os.truncate(path, 2000)
    with pytest.raises(InputError, match="became shorter"):
        stack.read(np.arange(10))
    stack.close()
    path.unlink()
    with pytest.raises(InputError, match="can no longer be read"):
        stack.read(np.arange(1))


def test_an_image_beyond_the_stack_is_an_error(stack_path: Path) -> None:
    for index, number in ((12, 13), (-1, 0)):
        with pytest.raises(InputError, match=f"has 12 images; there is no image {number}"):
            Stack(stack_path).read(np.array([0, index]))


def test_only_square_images_make_a_stack(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="8 x 6 pixels, not square"):
        Stack(write_mrc(tmp_path / "s.mrcs", np.zeros((3, 6, 8), np.float32)))


def test_a_volume_is_no_stack_unless_its_name_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"one volume of 6 x 6 x 6.*suffix \.mrcs"):
        Stack(write_mrc(tmp_path / "v.mrc", cube(), volume=True))
    assert Stack(write_mrc(tmp_path / "v.mrcs", cube(), volume=True)).count == 6
    assert Stack(write_mrc(tmp_path / "s.mrc", cube())).count == 6


@pytest.mark.parametrize("read", [read_volume, Stack])
@given(header=st.binary(min_size=1024, max_size=1100), sizes=st.tuples(*[st.integers(-1, 9)] * 4))
def test_no_bytes_make_anything_but_a_clear_error(
    tmp_path_factory: pytest.TempPathFactory, read: Any, header: bytes, sizes: tuple[int, ...]
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.mrc"
    path.write_bytes(np.array(sizes, np.int32).tobytes() + header[16:])
    try:
        read(path)
    except InputError as error:
        assert str(path) in str(error)  # noqa: PT017 - either outcome is right

"""MRC files: what is read is what was written, and damage is named."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
from typing import TYPE_CHECKING, Any

import mrcfile
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mpipar.errors import InputError, MissingInputError
from mpipar.formats import steady_file
from mpipar.formats.mrc import Stack, read_volume, stack_notes, write_volume
from mpipar.formats.mrc_header import read_header
from tests.support.blocks import noise_images, write_mrc
from tests.support.refine_input import DEMO

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


@pytest.mark.parametrize("order", ["<", ">"])
def test_axes_tell_the_byte_order_where_sizes_leave_it_open(tmp_path: Path, order: Any) -> None:
    images = np.arange(2 * 256 * 256).reshape(2, 256, 256).astype(np.int8)
    path = write_mrc(tmp_path / "s.mrcs", images, order=order, machst=(0, 0, 0, 0))
    np.testing.assert_array_equal(Stack(path).read(np.arange(2)), images.astype(np.float32))


IMOD = 1146047817
BYTES = np.arange(4 * 16 * 16).reshape(4, 16, 16).astype(np.uint8)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("fields", "bounds", "unsigned"),
    [
        ((IMOD, 0), (0, 0), True),
        ((IMOD, 1), (0, 255), False),
        ((IMOD, 4), (-128, 127), True),
        ((0, 0), (0, 255), True),
        ((0, 1), (0, 255), True),
        ((0, 0), (-128, 127), False),
        ((0, 0), (0, 127), False),
        ((0, 0), (0, 0), False),
        ((0, 0), (0, np.inf), False),
        ((0, 0), (0, 900.5), False),
        ((0, 0), (np.nan, np.nan), False),
    ],
)
def test_bytes_have_the_sign_that_the_header_gives_them(
    tmp_path: Path, order: Any, fields: Any, bounds: tuple[float, float], unsigned: bool
) -> None:
    low, high = bounds
    path = write_mrc(tmp_path / "s.mrcs", BYTES.view(np.int8), order=order, dmin=low, dmax=high)
    data = bytearray(path.read_bytes())
    data[152:160] = np.array(fields, f"{order}i4").tobytes()
    path.write_bytes(data)
    expected = BYTES if unsigned else BYTES.view(np.int8)
    stack = Stack(path)
    np.testing.assert_array_equal(stack.read(np.arange(4)), expected.astype(np.float32))
    assert bool(stack.notes) == (unsigned and fields[0] == 0)


def test_an_unsigned_volume_is_read_and_noted(tmp_path: Path) -> None:
    data = np.arange(16**3).reshape(16, 16, 16).astype(np.uint8)
    path = write_mrc(tmp_path / "v.mrc", data.view(np.int8), volume=True, dmin=0, dmax=255)
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.data, data.astype(np.float32))
    assert f"{path}: its integers are read as unsigned" in volume.notes[0]
    shorts = write_mrc(tmp_path / "s.mrc", (data * np.uint16(256)).view(np.int16), dmax=65535)
    assert Stack(shorts).read(np.array([0])).min() == 0


def test_images_are_turned_as_the_axes_say(tmp_path: Path) -> None:
    images = noise_images(5, 8)
    turned = np.ascontiguousarray(images.transpose(0, 2, 1))
    stack = Stack(write_mrc(tmp_path / "a.mrcs", turned, mapc=2, mapr=1))
    np.testing.assert_array_equal(stack.read(np.array([3, 1])), images[[3, 1]])
    assert stack_notes([stack, stack])[0].startswith(f"{stack.path} and 1 more stacks: its images")
    with pytest.raises(InputError, match=r"axes MAPC.* = 1, 3, 2: its sections are not images"):
        Stack(write_mrc(tmp_path / "b.mrcs", images, mapr=3, maps=2))
    odd = Stack(write_mrc(tmp_path / "c.mrcs", images, mapc=1, mapr=1, maps=1))
    np.testing.assert_array_equal(odd.read(np.arange(5)), images)
    assert "impossible axis order" in odd.notes[0]


@pytest.mark.parametrize(
    "pack",
    [
        pytest.param(gzip.compress, id="gzip"),
        pytest.param(bz2.compress, id="bzip2"),
        pytest.param(lzma.compress, id="xz"),
    ],
)
def test_a_compressed_volume_is_read_and_a_stack_is_named(tmp_path: Path, pack: Any) -> None:
    path = write_mrc(tmp_path / "v.mrc", cube(), volume=True, extended=160)
    packed = tmp_path / "v.map.gz"
    packed.write_bytes(pack(path.read_bytes()))
    np.testing.assert_array_equal(read_volume(packed).data, cube())
    with pytest.raises(InputError, match=r"is compressed with .*decompress it first"):
        Stack(packed)
    packed.write_bytes(pack(path.read_bytes()[:-100]))
    with pytest.raises(InputError, match="is truncated"):
        read_volume(packed)


def test_files_of_other_kinds_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.mrc").write_bytes(b"\x89HDF" + b"\xff" * 2000)
    with pytest.raises(InputError, match="it is an HDF5 file; convert it"):
        read_volume(tmp_path / "a.mrc")


def spider(order: str) -> bytes:
    words = np.zeros(256, f"{order}f4")
    words[[1, 4, 11, 12, 21, 22]] = 16, 1, 16, 16, 1024, 64
    return words.tobytes()


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        pytest.param("a.mrc", b"II*\0" + b"\1" * 2000, "it is a TIFF file; convert it", id="tiff"),
        pytest.param("a.mrc", b"\x89HDF" + b"\1" * 2000, "HDF5 file; .* e2proc2d", id="hdf5"),
        pytest.param("a.mrc", spider("<"), "it is a SPIDER file", id="spider"),
        pytest.param("a.mrc", spider(">"), "it is a SPIDER file", id="spider of another order"),
        pytest.param("a.img", bytes(2000), "it is an IMAGIC file", id="imagic"),
        pytest.param("a.dm4", b"\0\0\0\4" + bytes(2000), "a DigitalMicrograph file", id="dm4"),
        pytest.param("a.cs", b"\x93NUMPY" + b"x" * 2000, "csparc2star", id="cryosparc"),
        pytest.param("a.mrc", b"ATOM      1  N   ALA A  1" * 99, "an atomic model", id="atoms"),
        pytest.param("a.mrc", b"<!DOCTYPE html><html>" * 99, "a web page; the download", id="page"),
        pytest.param("a.mrc", b"version https://git-lfs", "23 bytes, .*git lfs pull", id="lfs"),
        pytest.param("a.mrc", b"data_\nloop_\n" * 99, "a text that begins with 'data_'", id="text"),
        pytest.param("a.star", b"data_\nloop_\n" * 99, "it is a STAR file", id="list"),
        pytest.param("a.mrc", b"x" * 257 + b"ustar" + b"x" * 999, "tar -xf", id="archive"),
        pytest.param("a.mrc", bytes(2000), "no sensible size and mode$", id="zeros"),
        pytest.param(
            "a.mrc",
            bytes(208) + b"MAP DD" + bytes(2000),
            "no sensible size and mode: 0 x 0 x 0 pixels of mode 0",
            id="no size",
        ),
    ],
)
def test_what_is_no_mrc_file_is_named(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    for read in (read_volume, Stack):
        with pytest.raises(InputError, match=message) as caught:
            read(tmp_path / name)
        assert name in str(caught.value)


@pytest.mark.parametrize("mode", [3, 4, 16, 101])
def test_modes_that_are_no_pixels_are_named(tmp_path: Path, mode: int) -> None:
    with pytest.raises(InputError, match=rf"MRC mode {mode}; .*; mode {mode} holds .* to mode 2"):
        Stack(write_mrc(tmp_path / "s.mrcs", noise_images(2, 8), mode=mode))


def test_a_cell_that_is_skewed_makes_no_cubic_voxels(tmp_path: Path) -> None:
    path = write_mrc(tmp_path / "v.mrc", cube(), volume=True, cellb=(90, 90, 120))
    with pytest.raises(InputError, match="voxels that are not cubes, by the cell"):
        read_volume(path)
    for angles in [(0, 0, 0), (90, 90, 90), (90.2, 90, 90), (np.nan, 0, 400)]:
        write_mrc(path, cube(), volume=True, cellb=angles)
        np.testing.assert_array_equal(read_volume(path).data, cube())


def test_an_extended_header_beyond_the_file_is_named(tmp_path: Path) -> None:
    for name, read in (("v.mrc", read_volume), ("s.mrcs", Stack)):
        path = write_mrc(tmp_path / name, cube(), volume=True, nsymbt=2**31 - 1)
        size = path.stat().st_size
        with pytest.raises(InputError, match=f"extended header alone has .* the file has {size}"):
            read(path)
        write_mrc(path, cube(), volume=True, nsymbt=-1)
        assert "impossible size -1" in read(path).notes[0]


def test_a_file_that_is_longer_than_its_header_says_is_noted(tmp_path: Path) -> None:
    for name, read in (("v.mrc", read_volume), ("s.mrcs", Stack)):
        path = write_mrc(tmp_path / name, cube(), volume=True)
        section = cube()[0].nbytes
        path.write_bytes(path.read_bytes() + bytes(section - 1))
        assert read(path).notes == ()
        path.write_bytes(path.read_bytes() + bytes(1))
        assert "longer than its header says" in read(path).notes[0]


@pytest.mark.usefixtures("impatient")
def test_a_stack_that_was_written_anew_is_an_error(tmp_path: Path) -> None:
    stack = Stack(write_mrc(tmp_path / "s.mrcs", noise_images(3, 8), dmax=1.0))
    write_mrc(tmp_path / "s.mrcs", noise_images(3, 8, seed=1), dmax=2.0)
    with pytest.raises(InputError, match="has changed since it was checked"):
        stack.read(np.array([0]))
    write_mrc(tmp_path / "s.mrcs", noise_images(3, 8), dmax=1.0)
    stack.read(np.array([0]))  # touched, or copied back
    stack.close()
    (tmp_path / "s.mrcs").unlink()
    with pytest.raises(MissingInputError, match=r"can no longer be read at byte .*: No such file"):
        stack.read(np.array([0]))


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Failing reads are tried again at once."""
    monkeypatch.setattr(steady_file, "WAITS", (0.0, 0.0))


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
    preadv = os.preadv

    def counted(fd: int, views: list[memoryview], at: int) -> int:
        reads.append((sum(map(len, views)), at))
        return preadv(fd, views, at)

    monkeypatch.setattr(os, "preadv", counted)
    monkeypatch.setattr("mpipar.formats.read_runs.LONGEST_GAP", 2 * 144)
    stack = Stack(stack_path)
    np.testing.assert_array_equal(
        stack.read(np.array([5, 0, 4, 9, 4, 2])), noise_images(12, 6)[[5, 0, 4, 9, 4, 2]]
    )
    stack.close()
    assert reads == [(6 * 144, 1024), (144, 1024 + 9 * 144)]


def test_long_runs_are_cut_and_short_reads_completed(
    stack_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    preadv, sizes = os.preadv, set[int]()

    def short(fd: int, views: list[memoryview], at: int) -> int:
        sizes.add(sum(map(len, views)))
        return preadv(fd, [views[0][:100]], at)

    monkeypatch.setattr("mpipar.formats.read_runs.LARGEST_READ", 5 * 144)
    monkeypatch.setattr(os, "preadv", short)
    stack = Stack(stack_path)
    np.testing.assert_array_equal(stack.read(np.arange(12)), noise_images(12, 6))
    assert max(sizes) == 5 * 144
    stack.close()
    np.testing.assert_array_equal(stack.read(np.array([7])), noise_images(12, 6)[7:8])
    stack.close()


def test_a_truncated_stack_says_what_it_has(tmp_path: Path) -> None:
    path = write_mrc(tmp_path / "s.mrcs", noise_images(10, 8))
    path.write_bytes(path.read_bytes()[: 1024 + 7 * 256 + 100])
    with pytest.raises(InputError, match=r"3584 bytes in all.* has 2916 bytes: 7 whole") as caught:
        Stack(path)
    assert str(path) in str(caught.value)


@pytest.mark.usefixtures("impatient")
def test_a_stack_cut_while_open_is_an_error(tmp_path: Path) -> None:
    path = write_mrc(tmp_path / "s.mrcs", noise_images(10, 8))
    stack = Stack(path)
    os.truncate(path, 2000)
    with pytest.raises(InputError, match="became shorter"):
        stack.read(np.arange(10))
    stack.close()
    path.unlink()
    with pytest.raises(MissingInputError, match="can no longer be read at byte 1024"):
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
    assert Stack(tmp_path / "v.mrc", marked=True).count == 6
    assert Stack(write_mrc(tmp_path / "v.mrcs", cube(), volume=True)).count == 6
    assert Stack(write_mrc(tmp_path / "s.mrc", cube())).count == 6


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # mrcfile sums half floats as such
@pytest.mark.parametrize("name", ["particles.mrcs", "init.mrc"])
def test_the_demo_is_valid_for_other_programs(name: str) -> None:
    assert mrcfile.validate(str(DEMO / name), print_file=io.StringIO())


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

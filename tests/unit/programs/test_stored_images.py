"""Images that travel as they are stored become the same float32 wherever a task looks at them."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from mpipar.errors import InputError
from mpipar.formats.star import read_particles
from mpipar.programs.images import StackSource, open_stacks
from mpipar.runtime.machines.block_cache import bytes_to_send, size_of
from mpipar.runtime.stage import frozen
from mpipar.runtime.wire import codec
from tests.support.blocks import optics_columns, particle_columns, write_mrc, write_star

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from mpipar.programs.stored_images import StoredImages

COUNT = 9
ORDER = np.array([7, 1, 4, 1, 0, 3, 8])


def source_of(folder: Path, stacks: list[NDArray[Any]], order: Any = "<", **header: Any) -> Any:
    """A source whose particle i is image i // n of stack i % n; one block, in a mixed order."""
    names = [f"{i // len(stacks) + 1}@{i % len(stacks)}.mrcs" for i in range(COUNT)]
    tables = {"optics": optics_columns(), "particles": particle_columns(COUNT, rlnImageName=names)}
    write_star(folder / "particles.star", tables)
    for number, images in enumerate(stacks):
        write_mrc(folder / f"{number}.mrcs", images, order=order, **header)
    particles = read_particles(folder / "particles.star")
    return StackSource(particles, open_stacks(particles), [ORDER])


def pixels(kind: str, box: int = 8, seed: int = 0) -> NDArray[Any]:
    values = np.random.default_rng(seed).normal(size=(COUNT, box, box))
    return (values * (1 if kind[0] == "f" else 20)).astype(kind)


def sent(block: StoredImages) -> StoredImages:
    """The block as another rank receives it."""
    frame, large = codec.encode(block)
    found: StoredImages = codec.decode(
        bytearray(frame), [np.frombuffer(bytes(view), np.uint8) for view in large]
    )
    return found


@pytest.mark.parametrize("box", [8, 9])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", ["f4", "f2", "i2", "i1"])
def test_every_kind_of_pixels_is_the_same_float32(
    tmp_path: Path, kind: str, order: str, box: int
) -> None:
    images = pixels(kind, box)
    source = source_of(tmp_path, [images], order)
    block = source.read(0)
    expected = images[ORDER, :8, :8].astype(np.float32)
    itemsize = images.dtype.itemsize
    assert bytes_to_send(block) == len(ORDER) * box**2 * itemsize, "no more than lies in the file"
    assert size_of(block) == expected.nbytes
    for arrived in (sent(block), block, sent(block), sent(sent(block))):
        np.testing.assert_array_equal(arrived["images"], expected)
        assert arrived["images"].dtype == np.float32
        assert arrived["images"].flags.c_contiguous
        assert not arrived["images"].flags.writeable
        assert arrived["images"] is arrived["images"]
        assert size_of(arrived) == expected.nbytes
    source.close()


def test_a_block_may_mix_kinds_of_pixels_and_turned_images(tmp_path: Path) -> None:
    stacks = [pixels("f4"), pixels("i2", seed=1), pixels("f2", seed=2)]
    source = source_of(tmp_path, stacks)
    write_mrc(tmp_path / "1.mrcs", stacks[1], order=">", mapc=2, mapr=1)
    source = StackSource(source.particles, open_stacks(source.particles), [ORDER])
    whole = [stacks[0], stacks[1].transpose(0, 2, 1), stacks[2]]
    expected = np.array([whole[i % 3][i // 3] for i in ORDER], np.float32)
    block = source.read(0)
    assert block.particles.tolist() == ORDER.tolist()
    np.testing.assert_array_equal(sent(block)["images"], expected)
    np.testing.assert_array_equal(source.images(ORDER), expected)
    source.close()


def test_every_half_precision_number_is_converted_as_numpy_does(tmp_path: Path) -> None:
    bits = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    images = np.resize(bits, (COUNT, 128, 128))
    block = source_of(tmp_path, [images]).read(0)
    converted, findings = block._images()
    assert findings.fault.any(), "NaN and infinities are among them"
    np.testing.assert_array_equal(converted, images[ORDER].astype(np.float32))


def test_the_runtime_passes_it_on_without_a_look(tmp_path: Path) -> None:
    images = pixels("f2")
    images[4, 2, 2] = np.nan
    block = source_of(tmp_path, [images]).read(0)
    assert id(frozen(block)) == id(block)
    assert list(block) == ["images"]
    assert len(block) == 1
    with pytest.raises(KeyError):
        block["pixels"]
    with pytest.raises(InputError, match="particle 5 has pixels that are NaN"):
        sent(block)["images"]
    assert sent(block).findings.first_fault() == (4, "has pixels that are NaN or infinite", 0)


def test_what_is_mended_is_found_and_the_same_everywhere(tmp_path: Path) -> None:
    images = pixels("f4", 32)
    x = np.arange(32) - 16
    images[1, 3, 3] = 500.0
    images[3][np.sqrt(x[:, None] ** 2 + x**2) > 16] = 9.0
    source = source_of(tmp_path, [images])
    block = source.read(0)
    other = sent(block)
    assert other.findings.hot.tolist() == [0, 1, 0, 1, 0, 0, 0]
    assert other.findings.filled.tolist() == [False] * 5 + [True, False]
    np.testing.assert_array_equal(other["images"], block["images"])
    assert block["images"][1, 3, 3] == np.median(images[1])
    source.note(other.findings)
    assert source.hot_pixels == {1: 1}
    assert source.filled_rims == {3}


def test_two_threads_make_the_images_once(tmp_path: Path) -> None:
    block = source_of(tmp_path, [pixels("i2")]).read(0)
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(id(block["images"]))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1


def test_rank_0_reads_into_memory_that_has_been_sent(tmp_path: Path) -> None:
    source = source_of(tmp_path, [pixels("f4", 128)])
    block = source.read(0)
    memory = block._stored[0].ctypes.data
    message = codec.encode(block)
    del block
    assert source.read(0)._stored[0].ctypes.data != memory, "the message is not sent yet"
    del message
    assert memory in {source.read(0)._stored[0].ctypes.data for _ in range(2)}

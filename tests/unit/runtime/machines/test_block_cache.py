from __future__ import annotations

import numpy as np

from mpipar.runtime.machines.block_cache import BlockCache, size_of


def block(size):
    return {"x": np.zeros(size, np.uint8)}


def test_size_counts_every_array():
    assert size_of({"a": np.zeros(3), "b": np.zeros((2, 2), np.int8)}) == 28


def test_least_recently_used_goes_first():
    cache = BlockCache(100)
    for number in range(3):
        cache.put(number, block(40))
        cache.get(0)
    assert [number in cache for number in range(3)] == [True, False, True]
    assert cache.bytes == 80


def test_same_block_again_counts_once():
    cache = BlockCache(100)
    cache.put(1, block(40))
    cache.put(1, block(60))
    assert (cache.bytes, len(cache)) == (60, 1)


def test_wanted_blocks_stay_even_beyond_the_limit():
    cache = BlockCache(50)
    cache.put(0, block(40), keep={0, 1})
    cache.put(1, block(40), keep={0, 1})
    assert (0 in cache, 1 in cache) == (True, True)
    cache.put(2, block(10), keep={2})
    assert (0 in cache, 1 in cache, 2 in cache) == (False, True, True)


def test_cleared_cache_has_nothing():
    cache = BlockCache(50)
    cache.put(0, block(40))
    cache.clear()
    assert (cache.get(0), cache.bytes, len(cache)) == (None, 0, 0)

"""The block cache against a list in order of use."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from mpipar.runtime.machines.block_cache import BlockCache

BLOCKS = st.integers(0, 9)


class CacheMachine(RuleBasedStateMachine):
    """The model is a list of (block, size), least recently used first."""

    @initialize(limit=st.integers(0, 50))
    def start(self, limit):
        self.limit = limit
        self.cache = BlockCache(limit)
        self.model = []

    @rule(block=BLOCKS, size=st.integers(0, 30), keep=st.sets(BLOCKS, max_size=3))
    def put(self, block, size, keep):
        self.cache.put(block, {"x": np.zeros(size, np.uint8)}, keep)
        self.model = [entry for entry in self.model if entry[0] != block] + [(block, size)]
        for entry in list(self.model):
            if sum(size for _, size in self.model) > self.limit and entry[0] not in keep:
                self.model.remove(entry)

    @rule(block=BLOCKS)
    def get(self, block):
        found = self.cache.get(block)
        known = dict(self.model)
        assert (found is None) == (block not in known)
        if found is not None:
            assert found["x"].size == known[block]
            self.model = [e for e in self.model if e[0] != block] + [(block, known[block])]

    @rule()
    def clear(self):
        self.cache.clear()
        self.model = []

    @invariant()
    def agrees_with_the_model(self):
        if hasattr(self, "model"):
            assert self.cache.bytes == sum(size for _, size in self.model)
            assert len(self.cache) == len(self.model)
            assert all(block in self.cache for block, _ in self.model)


TestCache = CacheMachine.TestCase

from __future__ import annotations

import numpy as np

from mpipar.runtime.machines.file_server import FileServer
from mpipar.runtime.machines.messages import BlockReply, BlockRequest, Send

ARRAYS = {"x": np.zeros(10, np.uint8)}


def reads(server):
    found = []
    while (block := server.next_read()) is not None:
        found.append(block)
    return found


def test_requests_for_one_block_are_one_read_and_an_answer_each():
    server = FileServer()
    server.request(1, BlockRequest(0, 5))
    server.request(2, BlockRequest(0, 5))
    assert reads(server) == [5]
    server.request(3, BlockRequest(0, 5))
    assert reads(server) == []
    reply = BlockReply(0, 5, ARRAYS)
    assert server.loaded(0, 5, ARRAYS) == [Send(1, reply), Send(2, reply), Send(3, reply)]
    assert (server.blocks_served, server.bytes_served) == (3, 30)


def test_one_rank_asking_twice_is_answered_once():
    server = FileServer()
    server.request(1, BlockRequest(0, 5))
    server.request(1, BlockRequest(0, 5))
    assert reads(server) == [5]
    assert len(server.loaded(0, 5, ARRAYS)) == 1


def test_reads_go_upwards_and_then_again_from_the_start_few_at_once():
    server = FileServer(most_reads=1)
    for block in (7, 3, 9):
        server.request(1, BlockRequest(0, block))
    order = []
    while found := reads(server):
        order += found
        if found == [3]:
            server.request(1, BlockRequest(0, 1))
        server.loaded(0, found[0], ARRAYS)
    assert order == [3, 7, 9, 1]


def test_not_more_reads_at_once_than_allowed():
    server = FileServer(most_reads=2)
    for block in range(5):
        server.request(1, BlockRequest(0, block))
    assert reads(server) == [0, 1]
    server.loaded(0, 0, ARRAYS)
    assert reads(server) == [2]


def test_block_of_an_old_source_is_neither_read_nor_sent():
    server = FileServer()
    server.request(1, BlockRequest(0, 5))
    assert reads(server) == [5]
    server.renew()
    server.request(1, BlockRequest(0, 6))
    assert reads(server) == []
    assert server.loaded(0, 5, ARRAYS) == []
    server.request(1, BlockRequest(1, 5))
    assert reads(server) == [5]


def test_failed_read_tells_whether_anybody_waited():
    server = FileServer()
    server.request(1, BlockRequest(0, 5))
    assert reads(server) == [5]
    assert server.unreadable(0, 5)
    server.request(1, BlockRequest(0, 5))
    assert reads(server) == [5]
    server.drop_requests()
    assert not server.unreadable(0, 5)


def test_nothing_is_read_for_a_lost_rank():
    server = FileServer(most_reads=1)
    server.request(1, BlockRequest(0, 5))
    server.request(2, BlockRequest(0, 6))
    server.request(1, BlockRequest(0, 7))
    server.request(2, BlockRequest(0, 7))
    server.rank_lost(1)
    assert reads(server) == [6]
    server.loaded(0, 6, ARRAYS)
    assert reads(server) == [7]
    assert server.loaded(0, 7, ARRAYS) == [Send(2, BlockReply(0, 7, ARRAYS))]

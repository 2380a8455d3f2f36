"""Messages as MPI carries them: a frame, then its large buffers, in pieces that MPI can count.

The memory that MPI reads or writes is kept here until MPI is done with it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from mpi4py import MPI

import numpy as np

from mpipar.runtime.wire import codec

if TYPE_CHECKING:
    from numpy.typing import NDArray

Address: TypeAlias = tuple[MPI.Intracomm | MPI.Intercomm, int]
"""A communicator, and the number of the other rank in it."""

FRAME, BUFFER = 1, 2
PIECE = 1 << 30  # bytes; MPI counts elements in 32 bits


@dataclass(slots=True)
class OutgoingMessages:
    """Messages on their way to one rank, in order, and the memory that MPI reads them from."""

    parts: deque[tuple[MPI.Request, Any, int]] = field(default_factory=deque)
    size: int = 0
    moved: float = 0.0  # when a part last left

    def send(self, address: Address, message: object) -> None:
        """Hand a message to MPI."""
        frame, large = codec.encode(message)
        pieces: list[tuple[codec.Frame, int]] = [(frame, FRAME)]
        for view in large:
            pieces += [(view[at : at + PIECE], BUFFER) for at in range(0, len(view), PIECE)]
        communicator, there = address
        for buffer, tag in pieces:
            request = communicator.Isend([buffer, MPI.BYTE], there, tag)
            self.parts.append((request, buffer, len(buffer)))
            self.size += len(buffer)

    def release_sent(self, now: float) -> None:
        """Release the memory of what MPI has sent."""
        while self.parts and self.parts[0][0].Test():
            self.size -= self.parts.popleft()[2]
            self.moved = now


@dataclass(slots=True)
class IncomingMessage:
    """A message of which parts may still be on their way."""

    frame: codec.Frame
    requests: list[MPI.Request]
    large: list[NDArray[np.uint8]] = field(default_factory=list)
    posted: bool = False  # whether the receives of `large` have been posted

    def post_buffers(self, address: Address) -> bool:
        """Post receives of the large buffers; False if the frame has not arrived yet."""
        if self.posted:
            return True
        if not MPI.Request.Testall(self.requests):
            return False
        self.requests.clear()
        communicator, there = address
        for size in codec.large_sizes(self.frame):
            array = np.empty(size, np.uint8)
            self.large.append(array)
            for start in range(0, size, PIECE):
                piece = array[start : start + PIECE]
                self.requests.append(communicator.Irecv([piece, MPI.BYTE], there, BUFFER))
        self.posted = True
        return True

    def decode(self) -> Any:
        """Return the message; everything has arrived."""
        return codec.decode(self.frame, self.large)


def take_complete(queue: deque[IncomingMessage], address: Address) -> list[IncomingMessage]:
    """Take the messages of one rank that have wholly arrived, in the order of sending."""
    for incoming in queue:
        # Buffers match receives in the order of posting, so in the order of their frames.
        if not incoming.post_buffers(address):
            break
    complete: list[IncomingMessage] = []
    while queue and queue[0].posted and MPI.Request.Testall(queue[0].requests):
        complete.append(queue.popleft())
    return complete


def is_finished(request: MPI.Request) -> bool:
    """Whether MPI is done with a request, with success or not."""
    try:
        return request.Test()
    except MPI.Exception:
        return True

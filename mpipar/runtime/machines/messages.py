"""The vocabulary of the wire: what may be said, and who may say it to whom.

`ToMaster` and `ToWorker` are closed unions: a receiver matches on every member, and the type
checker rejects one that forgets a message. Messages of a run carry its serial, so that a late one
is recognised and dropped.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from mpipar.runtime.stage import Policy

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from mpipar.runtime.stage import Block, Stage, Task

Rank: TypeAlias = int
Layout: TypeAlias = tuple[tuple[str, tuple[int, ...]], ...]
"""Name and shape of every array of a partial, sorted by name."""

MASTER: Rank = 0
POLICY: Final = Policy()


@dataclass(frozen=True, slots=True)
class Knobs:
    """Disturbances for tests, read by rank 0 from the environment and sent to every worker."""

    slow: tuple[tuple[Rank, float], ...] = ()  # MPIPAR_SLOW: rank, factor
    shuffle: int | None = None  # MPIPAR_SHUFFLE: seed of random placement, victims and amounts
    node_memory: bool = True  # MPIPAR_NODE_MEMORY: whether ranks of a host map the same arrays

    def slowdown(self, rank: Rank) -> float:
        """Return how many times longer a task shall take on this rank."""
        return dict(self.slow).get(rank, 1.0)


# Greeting and parting


@dataclass(frozen=True, slots=True)
class Hello:
    """Worker -> master, first of all."""

    host: str
    process: int
    cores: int  # that this process may use
    memory: str = ""  # what ranks that can map each other's memory say alike


@dataclass(frozen=True, slots=True)
class Welcome:
    """Master -> worker, once every worker has said hello."""

    threads: int
    cache_bytes: int
    knobs: Knobs
    crowding: float  # ranks per core on this worker's host


@dataclass(frozen=True, slots=True)
class Stop:
    """Master -> worker: leave, whatever you are doing."""

    reason: str = ""  # not empty: the job goes on without you
    kill: tuple[int, ...] = ()  # processes of this host that belong to the job, and hang


@dataclass(frozen=True, slots=True)
class Bye:
    """Worker -> master, its last message: the answer to `Stop`."""


@dataclass(frozen=True, slots=True)
class Beat:
    """Worker -> master, once a second during a run when there is nothing else to say; and back."""

    serial: int


@dataclass(frozen=True, slots=True)
class Crashed:
    """Worker -> master: a fault of the runtime itself on this worker; the job cannot go on."""

    text: str


@dataclass(frozen=True, slots=True)
class Gone:
    """Master -> worker: this rank is lost; expect nothing from it and drop what it says."""

    rank: Rank


# A run


@dataclass(frozen=True, slots=True)
class Begin:
    """Master -> worker -> worker: a run begins. Each receiver passes it on to its children.

    `tree` has the ranks host by host; `broadcast.py` says who is whose child. `plain`: the large
    arrays are sent as they are also between ranks of one host.
    """

    serial: int
    generation: int  # of the block source; caches of another one are void
    stage: Stage
    shared: Mapping[str, Any]
    tree: tuple[tuple[Rank, ...], ...]
    policy: Policy = POLICY
    plain: bool = False


@dataclass(frozen=True, slots=True)
class NeedArrays:
    """Worker -> master: what the lender has lodged cannot be mapped here; send Begin plain.

    If the lender is the worker itself, Begin has not come at all.
    """

    serial: int
    lender: Rank


@dataclass(frozen=True, slots=True)
class Place:
    """Master -> worker: these tasks are yours. Every worker gets one in a run, maybe empty."""

    serial: int
    tasks: tuple[Task, ...]
    apart: bool = False  # they failed, or ranks were lost with them: see Started


@dataclass(frozen=True, slots=True)
class Started:
    """Worker -> master: a task that was placed apart begins now.

    Such a task runs by itself and cannot be stolen; if the rank is lost now, it is because of it.
    """

    serial: int
    task: int


@dataclass(frozen=True, slots=True)
class Finished:
    """Worker -> master: tasks done, with their results."""

    serial: int
    results: tuple[tuple[int, Any], ...]
    seconds: float  # of computing, together
    peer_blocks: int = 0  # blocks got from other workers since the last report


@dataclass(frozen=True, slots=True)
class TaskFailed:
    """Worker -> master: a task raised. Exceptions do not travel; their text does.

    `task` is None when the stage itself failed (`start`, `partial`, a result that cannot be
    pickled): trying again elsewhere would not help, or would count a task twice.
    """

    serial: int
    task: int | None
    kind: str
    text: str
    traceback: str


@dataclass(frozen=True, slots=True)
class Overdue:
    """Worker -> master: a task runs longer than it may, and cannot be stopped here."""

    serial: int
    task: int


@dataclass(frozen=True, slots=True)
class Forget:
    """Master -> worker: the run is over or abandoned; drop its tasks, state and sums."""

    serial: int


# Stealing


@dataclass(frozen=True, slots=True)
class Idle:
    """Worker -> master: a thread here has nothing to do.

    If a victim has just answered with nothing, `dry` is that victim and `seen` the number of
    assignments that it had received: with none on its way, it need not be asked again.
    """

    serial: int
    dry: Rank | None = None
    seen: int = 0


@dataclass(frozen=True, slots=True)
class StealFrom:
    """Master -> thief: ask this victim for this share of what it has not started."""

    serial: int
    victim: Rank
    share: float


@dataclass(frozen=True, slots=True)
class StealRequest:
    """Thief -> victim: give me that share of what you have not started."""

    serial: int
    share: float


@dataclass(frozen=True, slots=True)
class StealReply:
    """Victim -> thief, always sent. Empty means nothing to give."""

    serial: int
    tasks: tuple[Task, ...]
    cached: frozenset[int]  # the blocks of these tasks that the victim can hand over itself
    seen: int  # assignments that the victim has received from the master in this run


@dataclass(frozen=True, slots=True)
class Claim:
    """Thief -> master: `victim` gave me these tasks; may I have them."""

    serial: int
    claim: int  # counted by the claimer, and copied into the answer
    victim: Rank
    tasks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Granted:
    """Master -> claimer: these claimed tasks are yours."""

    serial: int
    claim: int
    tasks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Refused:
    """Master -> claimer: these claimed tasks are not yours; drop them."""

    serial: int
    claim: int
    tasks: tuple[int, ...]


# Blocks


@dataclass(frozen=True, slots=True)
class BlockRequest:
    """Worker -> master or worker."""

    generation: int
    block: int


@dataclass(frozen=True, slots=True)
class BlockReply:
    """Master or worker -> worker."""

    generation: int
    block: int
    arrays: Block = field(repr=False)


@dataclass(frozen=True, slots=True)
class BlockMiss:
    """Worker -> worker: that block is not here any more; ask the master."""

    generation: int
    block: int


# Sums


@dataclass(frozen=True, slots=True)
class Collect:
    """Master -> worker: all tasks are finished; work out your partial."""

    serial: int
    number: int  # of this attempt at the reduction; it is redone when a rank is lost


@dataclass(frozen=True, slots=True)
class Collected:
    """Worker -> master: the partial is ready and looks like this (None: nothing to add)."""

    serial: int
    number: int
    layout: Layout | None


@dataclass(frozen=True, slots=True)
class Reduce:
    """Master -> worker: your place in the reduction tree, and the arrays that all together have."""

    serial: int
    number: int
    parent: Rank
    children: tuple[Rank, ...]
    layout: Layout


@dataclass(frozen=True, slots=True)
class Partial:
    """Child -> parent in the reduction tree: one chunk, summed over the child's subtree."""

    serial: int
    number: int
    chunk: int
    data: NDArray[np.int64] = field(repr=False)


@dataclass(frozen=True, slots=True)
class More:
    """Parent -> child in the reduction tree: send chunks up to, not including, `limit`."""

    serial: int
    number: int
    limit: int


@dataclass(frozen=True, slots=True)
class Unreachable:
    """Worker -> master: that rank does not answer me, though you hear us both. See links.py."""

    serial: int
    rank: Rank


ToMaster: TypeAlias = (
    Hello
    | Bye
    | Beat
    | Crashed
    | Started
    | NeedArrays
    | Finished
    | TaskFailed
    | Overdue
    | Unreachable
    | Idle
    | Claim
    | BlockRequest
    | Collected
    | Partial
)
ToWorker: TypeAlias = (
    Welcome
    | Stop
    | Beat
    | Gone
    | Begin
    | Place
    | Forget
    | StealFrom
    | StealRequest
    | StealReply
    | Granted
    | Refused
    | BlockRequest
    | BlockReply
    | BlockMiss
    | Collect
    | Reduce
    | Partial
    | More
)
Message: TypeAlias = ToMaster | ToWorker


@dataclass(frozen=True, slots=True)
class Send:
    """What a state machine wants sent."""

    rank: Rank
    message: Message

"""The messages between ranks: what each one means, and which side sends it to which.

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
    """Settings that disturb a run, for tests: rank 0 reads them from the environment."""

    slow: tuple[tuple[Rank, float], ...] = ()  # MPIPAR_SLOW: rank, factor
    shuffle: int | None = None  # MPIPAR_SHUFFLE: seed of random placement, victims and amounts
    node_memory: bool = True  # MPIPAR_NODE_MEMORY: whether ranks of a host map the same arrays

    def slowdown(self, rank: Rank) -> float:
        """Return how many times longer a task shall take on this rank."""
        return dict(self.slow).get(rank, 1.0)


# Beginning and end of a worker


@dataclass(frozen=True, slots=True)
class Hello:
    """Worker -> master: its first message."""

    host: str
    process: int
    cores: int  # that this process may use
    memory: str = ""  # the same for ranks of one host that can map each other's memory


@dataclass(frozen=True, slots=True)
class Welcome:
    """Master -> worker: the answer to Hello."""

    threads: int
    cache_bytes: int
    knobs: Knobs
    crowding: float  # ranks per core on this worker's host


@dataclass(frozen=True, slots=True)
class Stop:
    """Master -> worker: end at once, whatever is under way."""

    reason: str = ""  # not empty: why the job goes on without this worker
    kill: tuple[int, ...] = ()  # hung processes of the job on this host, to be killed


@dataclass(frozen=True, slots=True)
class Bye:
    """Worker -> master: its last message, the answer to Stop."""


@dataclass(frozen=True, slots=True)
class Beat:
    """Worker -> master and back, in a run: the sender lives, and has nothing else to send."""

    serial: int


@dataclass(frozen=True, slots=True)
class Crashed:
    """Worker -> master: the runtime itself failed on this worker; the job cannot go on."""

    text: str


@dataclass(frozen=True, slots=True)
class RankLost:
    """Master -> worker: a rank is lost; await nothing from it, and drop its messages."""

    rank: Rank


# A run


@dataclass(frozen=True, slots=True)
class Begin:
    """Master -> worker -> worker: a run begins. Each receiver passes this on to its children.

    `tree` has the ranks host by host; `broadcast.py` says which rank is a child of which. `plain`:
    the large arrays themselves are sent, also between ranks that could map the same memory.
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
    """Worker -> master: the shared arrays of another rank cannot be mapped here; send them.

    The answer is a plain Begin. If the lender is the worker itself, Begin has not come at all.
    """

    serial: int
    lender: Rank  # the rank that has published the arrays


@dataclass(frozen=True, slots=True)
class Place:
    """Master -> worker: the worker now owns these tasks.

    Every worker gets one such message in a run, maybe without tasks.
    """

    serial: int
    tasks: tuple[Task, ...]
    alone: bool = False  # these failed before, or ranks were lost with them: see TaskStarted


@dataclass(frozen=True, slots=True)
class TaskStarted:
    """Worker -> master: a task that was placed alone begins now.

    Such a task is the only one that its thread has, and cannot be stolen. If the rank is lost while
    the task runs, the task is to blame.
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
    """Worker -> master: a task raised an exception, of which only the text is sent.

    `task` is None when the stage itself failed (`start`, `partial`, a result that cannot be
    pickled): trying again elsewhere would not help, or would count a task twice.
    """

    serial: int
    task: int | None
    kind: str
    text: str
    traceback: str


@dataclass(frozen=True, slots=True)
class TaskOverdue:
    """Worker -> master: a task runs longer than its time-out, and cannot be stopped here."""

    serial: int
    task: int


@dataclass(frozen=True, slots=True)
class Forget:
    """Master -> worker: the run has ended, well or not; drop its tasks, state and sums."""

    serial: int


# Stealing


@dataclass(frozen=True, slots=True)
class Idle:
    """Worker -> master: a thread here has nothing to do.

    If a victim has just answered without tasks, this says so: unless the master has sent more
    assignments to that victim than the victim had seen, it need not be asked again.
    """

    serial: int
    empty_victim: Rank | None = None
    seen: int = 0  # assignments that this victim had received


@dataclass(frozen=True, slots=True)
class StealFrom:
    """Master -> thief: ask a victim for a share of the tasks that it has not started."""

    serial: int
    victim: Rank
    share: float


@dataclass(frozen=True, slots=True)
class StealRequest:
    """Thief -> victim: hand over a share of the tasks that are not started."""

    serial: int
    share: float


@dataclass(frozen=True, slots=True)
class StealReply:
    """Victim -> thief: the answer to StealRequest, with tasks or without."""

    serial: int
    tasks: tuple[Task, ...]
    cached: frozenset[int]  # the blocks of these tasks that the victim has, or awaits of rank 0
    seen: int  # assignments that the victim has received from the master in this run


@dataclass(frozen=True, slots=True)
class Claim:
    """Thief -> master: a victim handed over these tasks; the thief asks for them."""

    serial: int
    claim: int  # counted by the claimer, and copied into the answer
    victim: Rank
    tasks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Granted:
    """Master -> thief: the thief now owns these claimed tasks."""

    serial: int
    claim: int
    tasks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Refused:
    """Master -> thief: another worker owns these claimed tasks; drop them."""

    serial: int
    claim: int
    tasks: tuple[int, ...]


# Blocks


@dataclass(frozen=True, slots=True)
class BlockRequest:
    """Worker -> master or worker: send a block."""

    generation: int
    block: int


@dataclass(frozen=True, slots=True)
class BlockReply:
    """Master or worker -> worker: the block that was asked for."""

    generation: int
    block: int
    arrays: Block = field(repr=False)


@dataclass(frozen=True, slots=True)
class BlockMiss:
    """Worker -> worker: the block is not in the cache any more; ask the master."""

    generation: int
    block: int


# Sums


@dataclass(frozen=True, slots=True)
class Collect:
    """Master -> worker: all tasks are finished; compute this worker's partial sum."""

    serial: int
    number: int  # of this attempt at the reduction; it is redone when a rank is lost


@dataclass(frozen=True, slots=True)
class Collected:
    """Worker -> master: the partial sum is ready."""

    serial: int
    number: int
    layout: Layout | None  # None: there is nothing to add


@dataclass(frozen=True, slots=True)
class Reduce:
    """Master -> worker: begin to add up, at this place in the reduction tree."""

    serial: int
    number: int
    parent: Rank
    children: tuple[Rank, ...]
    layout: Layout  # of the whole sum


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
    """Worker -> master: a rank does not answer this worker; see `peer_timeouts.py`."""

    serial: int
    rank: Rank


ToMaster: TypeAlias = (
    Hello
    | Bye
    | Beat
    | Crashed
    | TaskStarted
    | NeedArrays
    | Finished
    | TaskFailed
    | TaskOverdue
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
    | RankLost
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
    """A machine's order to send a message."""

    rank: Rank
    message: Message

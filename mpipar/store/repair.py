"""Repair of a damaged project: what can be read becomes the journal of a new epoch.

Nothing is removed: the damaged journals stay where they are, and no longer count.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mpipar.errors import StoreError
from mpipar.store import durable, journal, project_index, schema, takeover
from mpipar.store.epoch import LEASE, Ownership, WriterClaim
from mpipar.store.project import Project
from mpipar.store.salvage import Salvage, salvage
from mpipar.store.schema import MANIFEST, Pin

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["repair"]


def repair(project: Path, say: Callable[[str], None]) -> str:
    """Write what can be read as the journal of a new epoch; return what was brought back.

    raises   ProjectLockedError if a writer lives
    """
    takeover.require_project(project)
    claim = takeover.take_next_epoch(project, LEASE, say, agreeing=False)
    ownership = Ownership(project, claim)
    kept: Pin | None = None
    try:
        found = salvage(project)
        kept = _write(project, claim, ownership, found)
        # it may list commits whose segments are lost
        with project_index.prepared(ownership, found.identity, found.commits) as publish:
            publish()
    finally:
        ownership.release(kept)
    with Project.open(project, writer=True, say=say) as repaired:  # as any run that follows
        repaired.verdict("requeue", "repaired; go on with --resume")
    return f"{project}: repaired: brought back {found}; the damaged files stay, and do not count"


def _write(project: Path, claim: WriterClaim, ownership: Ownership, found: Salvage) -> Pin:
    manifest = schema.manifest_to_json(found.identity, ())
    header = journal.frame_header(claim.epoch, bytes.fromhex(claim.nonce))
    seed = journal.seed_of(header)
    data = header + b"".join(
        journal.frame(seed, serial, 0, kind, payload)
        for serial, (kind, payload) in enumerate([(MANIFEST, manifest), *found.records])
    )
    final = project / schema.JOURNAL / schema.journal_name(claim.epoch)
    temporary = final.with_name(schema.temporary_name(claim.epoch, final.name))
    with durable.named_errors(final, len(data)), ownership.told_first():
        durable.write_temporary(temporary, data)
        durable.publish(temporary, final, verify=ownership.verify)
    parsed = journal.parse(data)
    if parsed.size != len(data):
        raise StoreError(f"{final}: what was written cannot be read back; try again")
    return Pin(claim.epoch, parsed.size, len(parsed.records), parsed.chain)

"""`mpipar refine`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mpipar import launch
from mpipar.cli.outcome import conduct
from mpipar.cli.request import Command, Request
from mpipar.settings import RefineSettings

if TYPE_CHECKING:
    from mpipar.launch import Launch

__all__ = ["COMMAND"]


def run(request: Request) -> int:
    """Refine on rank 0, serve on the others."""
    around, words = request.around, request.words
    if around.is_alone:
        settings = request.read(RefineSettings)
        threads = settings.threads
        here = launch.start(around, settings.parallel, threads=threads, arguments=words)
        return conduct(here, lambda: _refine(settings, here))
    # Of several ranks only rank 0 may open a settings file, and what it finds wrong there must not
    # leave the others waiting: so join the world first.
    here = launch.start(around, request.flags.get("parallel"), threads=1, arguments=words)
    return here.serve() if here.rank > 0 else conduct(here, lambda: _read_late(request, here))


def _read_late(request: Request, here: Launch) -> int:
    settings = request.read(RefineSettings)
    here.confirm(settings.parallel)
    return _refine(settings, here)


def _refine(settings: RefineSettings, here: Launch) -> int:
    from mpipar.programs import refine
    from mpipar.views import open_view

    with open_view(settings.verbose) as view:
        view.say(here.description)
        if here.note:
            view.say(f"note: {here.note}")
        refine.run(settings, here.open_pool, view)
    return 0


COMMAND = Command(RefineSettings, run, is_parallel=True)

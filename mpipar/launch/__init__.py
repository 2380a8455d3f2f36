"""Starting: what this process is (alone, with worker threads, or a rank of an MPI world)."""

from __future__ import annotations

from mpipar.launch.caches import prepare_process
from mpipar.launch.launch_environment import LaunchEnvironment
from mpipar.launch.start import Launch, start

__all__ = ["Launch", "LaunchEnvironment", "prepare_process", "start"]

"""Virtual nodes on this machine: own host name, own address, own network cable. Needs root.

    with Nodes(folder, 3) as nodes:
        line = [*nodes.on("m0"), "mpirun", "--hostfile", nodes.hostfile(1), *nodes.launcher(), ...]
        nodes.cut("m2")

Processes are this machine's, so a test sees and can end them all.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from typing_extensions import Self

PROGRAMS: Final = ("ip", "unshare", "nsenter", "mount")
HOLD: Final = """
hostname "$1" && mount --bind "$2" /etc/hosts && mount -t tmpfs shm /dev/shm && echo up > "$3" &&
exec sleep 100000
"""
AGENT: Final = """#!/bin/bash
# In the place of ssh: [options] node command...
while [[ $1 == -* ]]; do shift; done
node=$1; shift
exec nsenter -t "$(cat "{folder}/$node.pid")" -n -u -i -m -w"$PWD" -- bash -c "$*"
"""


def unable() -> str:
    """Why there can be no virtual nodes here; empty if there can."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        return f"not installed: {', '.join(missing)}"
    if os.geteuid() != 0:
        return "only root can make network namespaces"
    tried = subprocess.run(
        ["unshare", "-n", "-u", "-i", "-m", "true"], capture_output=True, text=True, check=False
    )
    return "" if tried.returncode == 0 else f"no namespaces here: {tried.stderr.strip()}"


class Nodes:
    """Nodes m0, m1, .. on one bridge."""

    def __init__(self, folder: Path, count: int) -> None:
        self._folder = folder
        self._tag = f"{os.getpid() % 100_000:05d}"
        self._bridge = f"mpb{self._tag}"
        self._net = f"10.{77 + os.getpid() % 100}.{os.getpid() // 100 % 250}"
        self.names = [f"m{number}" for number in range(count)]
        self._holders: dict[str, subprocess.Popen[bytes]] = {}
        self.agent = folder / "agent"

    def __enter__(self) -> Self:
        self._folder.mkdir(exist_ok=True)
        hosts = ["127.0.0.1 localhost"]
        hosts += [f"{self._address(name)} {name}" for name in self.names]
        (self._folder / "hosts").write_text("\n".join([*hosts, ""]))
        self.agent.write_text(AGENT.format(folder=self._folder))
        self.agent.chmod(0o755)
        try:
            _ip("link", "add", self._bridge, "type", "bridge")
            _ip("link", "set", self._bridge, "up")
            for name in self.names:
                self._boot(name)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        for holder in self._holders.values():
            holder.kill()
            holder.wait()
        for name in self._holders:
            _ip("link", "del", self._cable(name), check=False)
        _ip("link", "del", self._bridge, check=False)

    def _address(self, name: str) -> str:
        return f"{self._net}.{10 + int(name[1:])}"

    def _cable(self, name: str) -> str:
        return f"mp{self._tag}{name}"

    def _boot(self, name: str) -> None:
        ready = self._folder / f"{name}.ready"
        command = ["unshare", "-n", "-u", "-i", "-m", "bash", "-c", HOLD, "node", name]
        holder = subprocess.Popen([*command, str(self._folder / "hosts"), str(ready)])
        self._holders[name] = holder
        until = time.monotonic() + 10
        while not ready.exists():
            assert holder.poll() is None, f"node {name} does not come up"
            assert time.monotonic() < until, f"node {name} takes too long to come up"
            time.sleep(0.01)
        (self._folder / f"{name}.pid").write_text(str(holder.pid))
        cable, inside = self._cable(name), ["nsenter", "-t", str(holder.pid), "-n"]
        _ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", str(holder.pid))
        _ip("link", "set", cable, "master", self._bridge, "up")
        for words in (
            ("link", "set", "lo", "up"),
            ("addr", "add", f"{self._address(name)}/24", "dev", "eth0"),
            ("link", "set", "eth0", "up"),
        ):
            subprocess.run([*inside, "ip", *words], check=True)

    def on(self, name: str) -> list[str]:
        """What runs a command on a node, when put before it."""
        holder = self._holders[name].pid
        return ["nsenter", "-t", str(holder), "-n", "-u", "-i", "-m", f"-w{Path.cwd()}", "--"]

    def hostfile(self, slots: int) -> Path:
        """A list of all nodes for Open MPI."""
        path = self._folder / "hostfile"
        path.write_text("".join(f"{name} slots={slots}\n" for name in self.names))
        return path

    def cut(self, name: str) -> None:
        """Pull the node's cable: nobody is told."""
        _ip("link", "set", self._cable(name), "down")

    def lose_what_is_sent(self, source: str, target: str) -> None:
        """From now on nothing that one node sends to the other arrives; nobody is told."""
        nowhere = ("lladdr", "02:00:00:00:00:01", "dev", "eth0", "nud", "permanent")
        inside = ["nsenter", "-t", str(self._holders[source].pid), "-n"]
        words = ("neigh", "replace", self._address(target), *nowhere)
        subprocess.run([*inside, "ip", *words], check=True)

    def mend(self, name: str) -> None:
        """Plug it in again."""
        _ip("link", "set", self._cable(name), "up")


def _ip(*words: str, check: bool = True) -> None:
    subprocess.run(["ip", *words], check=check, capture_output=not check)

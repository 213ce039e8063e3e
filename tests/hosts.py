"""Several hosts on one machine: network namespaces with names, addresses, a /tmp/ray and a home of their own.

They share the machine's files, as hosts with a common file system do. Only root may make them.
"""

from __future__ import annotations

import os
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
_NETWORK = "10.77.0"  # inside the namespaces alone
# What a command of a host needs before it begins: its own name, and Ray's folder for itself.
_ENTER = "hostname {name} && mount --bind {ray} /tmp/ray && exec {command}"


class Host:
    """name: in the others' /etc/hosts too. address: of its only network. home: its home folder."""

    def __init__(self, name: str, number: int, mark: str, folder: Path) -> None:
        self.name, self.namespace = name, f"m2can-{mark}-{name}"
        self.address, self.cable = f"{_NETWORK}.{number}", f"to-{number}"
        self.home, self.ray_folder = folder / name, folder / f"{name}-ray"
        self._started: list[subprocess.Popen[str]] = []

    def start(self, command: str, log: Path | None = None, **variables: str) -> subprocess.Popen[str]:
        """Run a shell's command line on the host. Its output goes to `log`, or to the pipes of what is returned."""
        inner = f"bash -euo pipefail -c {shlex.quote(command)}"
        entered = _ENTER.format(name=self.name, ray=shlex.quote(str(self.ray_folder)), command=inner)
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}
        environment |= {
            "HOME": str(self.home),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            **variables,
        }
        stream = log.open("a") if log else subprocess.PIPE
        process = subprocess.Popen(
            ["ip", "netns", "exec", self.namespace, "unshare", "--uts", "sh", "-c", entered],
            stdout=stream, stderr=subprocess.STDOUT, text=True, env=environment, cwd=self.home,
        )  # fmt: skip
        self._started.append(process)
        return process

    def run(self, command: str, timeout_s: float = 120, **variables: str) -> str:
        """What a command prints that ends well."""
        process = self.start(command, **variables)
        output, _ = process.communicate(timeout=timeout_s)
        assert process.returncode == 0, f"{self.name}: {command}\n{output[-4000:]}"
        return output

    def processes(self, named: str = "") -> list[int]:
        """Ids of the host's processes whose program has this name."""
        found = subprocess.run(["ip", "netns", "pids", self.namespace], capture_output=True, text=True)
        return [int(number) for number in found.stdout.split() if _program(int(number)).endswith(named)]

    def kill(self) -> bool:
        """SIGKILL for all of the host's processes: a node that is asked to end drains itself first. False: none is left."""
        numbers = self.processes()
        for number in numbers:
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        for process in self._started:
            process.poll()  # what has ended is no process any more
        return bool(numbers)


class Hosts:
    """Hosts on one network."""

    def __init__(self, names: list[str], folder: Path) -> None:
        mark = secrets.token_hex(2)
        self.switch = f"m2can-{mark}-switch"
        self.all = {name: Host(name, number, mark, folder) for number, name in enumerate(names, start=2)}

    def __getitem__(self, name: str) -> Host:
        return self.all[name]

    def make(self) -> None:
        """Skips the test where the right is lacking."""
        if os.geteuid() != 0 or shutil.which("ip") is None:
            pytest.skip("only root, with iproute2, makes network namespaces")
        made = subprocess.run(["ip", "netns", "add", self.switch], capture_output=True, text=True)
        if made.returncode != 0:
            pytest.skip(f"network namespaces cannot be made here: {made.stderr.strip()}")
        Path("/tmp/ray").mkdir(exist_ok=True)
        _ip("-n", self.switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", self.switch, "link", "set", "bridge", "up")
        names = "".join(f"{host.address} {host.name}\n" for host in self.all.values())
        for host in self.all.values():
            _ip("netns", "add", host.namespace)
            pair = ["type", "veth", "peer", "name", "eth0", "netns", host.namespace]
            _ip("-n", self.switch, "link", "add", host.cable, *pair)
            _ip("-n", self.switch, "link", "set", host.cable, "master", "bridge", "up")
            _ip("-n", host.namespace, "addr", "add", f"{host.address}/24", "dev", "eth0")
            for link in ("lo", "eth0"):
                _ip("-n", host.namespace, "link", "set", link, "up")
            for folder in (host.home, host.ray_folder, _etc(host)):
                folder.mkdir(parents=True)
            (_etc(host) / "hosts").write_text(f"127.0.0.1 localhost\n{names}")  # `ip netns exec` puts it in place

    def remove(self) -> None:
        deadline = time.monotonic() + 30
        while sum(map(Host.kill, self.all.values())) and time.monotonic() < deadline:
            time.sleep(0.2)
        for host in self.all.values():
            subprocess.run(["ip", "netns", "del", host.namespace], capture_output=True)
            shutil.rmtree(_etc(host), ignore_errors=True)
        subprocess.run(["ip", "netns", "del", self.switch], capture_output=True)
        with suppress(OSError):
            _etc(next(iter(self.all.values()))).parent.rmdir()

    def cut_off(self, name: str) -> None:
        """Pull the host's cable."""
        _ip("-n", self.switch, "link", "set", self[name].cable, "down")

    def reconnect(self, name: str) -> None:
        _ip("-n", self.switch, "link", "set", self[name].cable, "up")


@contextmanager
def several_hosts(folder: Path, *names: str) -> Iterator[Hosts]:
    """Hosts of these names; nothing of them stays."""
    hosts = Hosts(list(names), folder)
    try:
        hosts.make()
        yield hosts
    finally:
        hosts.remove()


def wait_until(true: Callable[[], object], timeout_s: float, what: str) -> None:
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, f"{timeout_s:g} s have gone: {what}"
        time.sleep(0.2)


def _etc(host: Host) -> Path:
    return Path("/etc/netns") / host.namespace


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def _program(number: int) -> str:
    try:
        return os.readlink(f"/proc/{number}/exe")
    except OSError:
        return ""

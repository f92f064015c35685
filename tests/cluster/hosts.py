"""Two hosts on one machine: network namespaces, each with its own address, sshd, processes, /tmp and home folder."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

BRIDGE, NETWORK = "clinfuse0", "10.77.0"


def sh(*words: str, check: bool = True, timeout: float = 120) -> str:
    """Run a command; its standard output."""
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=timeout)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(words)}: exit {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stdout


def missing() -> str:
    """Why hosts cannot be made here; "" if they can."""
    if os.geteuid() != 0:
        return "needs root"
    absent = [tool for tool in ("ip", "sshd", "ssh", "ssh-keygen", "rsync", "unshare") if not find(tool)]
    if absent:
        return f"needs {', '.join(absent)} (apt-get install openssh-server iproute2 rsync)"
    try:
        sh("ip", "netns", "add", "clinfuse-probe")
        sh("ip", "netns", "del", "clinfuse-probe")
    except RuntimeError:
        return "network namespaces cannot be made here"
    return ""


def find(tool: str) -> str | None:
    """Where a tool is, system folders included."""
    return shutil.which(tool, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


@dataclass
class Host:
    """One host: `number` gives its address 10.77.0.<number>."""

    number: int
    folder: Path
    key: Path
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """Its network namespace."""
        return f"clinfuse-{self.number}"

    @property
    def address(self) -> str:
        """Its address."""
        return f"{NETWORK}.{self.number}"

    def start(self) -> None:
        """Plug it into the bridge and start its sshd in mount and process namespaces of its own."""
        inside, outside = f"cf{self.number}i", f"cf{self.number}o"
        sh("ip", "netns", "add", self.name)
        sh("ip", "link", "add", outside, "type", "veth", "peer", "name", inside)
        sh("ip", "link", "set", inside, "netns", self.name)
        sh("ip", "link", "set", outside, "master", BRIDGE, "up")
        for words in (f"addr add {self.address}/24 dev {inside}", f"link set {inside} up", "link set lo up"):
            sh("ip", "-n", self.name, *words.split())
        # Ray takes the address of the way out as the host's own; nothing is sent there, and nothing is forwarded.
        sh("ip", "-n", self.name, "route", "add", "default", "via", f"{NETWORK}.1")
        script = self._write_start()
        self.process = subprocess.Popen(
            ["ip", "netns", "exec", self.name, "unshare", "--mount", "--pid", "--fork", "--kill-child",
             "--mount-proc", "bash", str(script)],
            stdout=(self.folder / "host.log").open("ab"),
            stderr=subprocess.STDOUT,
        )  # fmt: skip
        self._wait_for_ssh()

    def _write_start(self) -> Path:
        """The script that lays out the host's folders and ends as its sshd; what the interpreter needs of the
        shared home folder stays visible."""
        home, tmp = self.folder / "home", self.folder / "tmp"
        for folder in (home / ".ssh", tmp):
            folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(self.key.with_suffix(".pub"), home / ".ssh" / "authorized_keys")
        config = self.folder / "sshd_config"
        config.write_text(
            f"Port 22\nListenAddress {self.address}\nHostKey {self.folder}/host_key\nPidFile {self.folder}/pid\n"
            "PermitRootLogin yes\nPasswordAuthentication no\nUsePAM no\nStrictModes no\nMaxStartups 50\n"
            "MaxSessions 50\n"
        )
        if not (self.folder / "host_key").exists():
            sh("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.folder / "host_key"))
        binds = []
        real_home, base = Path.home(), Path(sys.base_prefix)
        if base.is_relative_to(real_home):
            top = base.relative_to(real_home).parts[0]
            (home / top).mkdir(exist_ok=True)
            binds.append(f"mount --bind {real_home / top} {home / top}")
        script = self.folder / "start.sh"
        script.write_text(
            "set -e\nmount --make-rprivate /\n"
            + "\n".join(binds)
            + f"\nmount --rbind {home} {real_home}\nmount --bind {tmp} /tmp\n"
            + "mkdir -p /run/sshd\n"
            + f"exec {find('sshd')} -D -e -f {config}\n"
        )
        return script

    def _wait_for_ssh(self) -> None:
        for _ in range(100):
            try:
                self.ssh("true", timeout=20)
                return
            except (RuntimeError, subprocess.TimeoutExpired):
                time.sleep(0.2)
        raise RuntimeError(f"{self.name} does not answer:\n{(self.folder / 'host.log').read_text()}")

    def ssh(self, command: str, timeout: float = 300, check: bool = True) -> str:
        """Run a shell command on the host; its standard output."""
        return sh(*self.ssh_words(command), timeout=timeout, check=check)

    def ssh_words(self, command: str) -> list[str]:
        """The words of the ssh command; `command` may also be an option such as -N."""
        options = "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR -o ConnectTimeout=5"
        first = [command] if command.startswith("-") else []
        last = [] if first else [command]
        return ["ssh", *first, "-i", str(self.key), *options.split(), f"root@{self.address}", *last]

    def kill(self) -> None:
        """The host goes down at once: every process on it, then its network."""
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            self.process = None
        sh("ip", "netns", "del", self.name, check=False)
        sh("ip", "link", "del", f"cf{self.number}o", check=False)
        shutil.rmtree(self.folder / "tmp", ignore_errors=True)


class Hosts:
    """A bridge and the hosts on it, taken down at the end."""

    def __init__(self, folder: Path, numbers: tuple[int, ...] = (11, 12)) -> None:
        self.folder, self.key = folder, folder / "key"
        self.hosts = [Host(number=n, folder=folder / f"host{n}", key=self.key) for n in numbers]

    def __enter__(self) -> Hosts:
        self.folder.mkdir(parents=True, exist_ok=True)
        sh("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.key))
        sh("ip", "link", "add", BRIDGE, "type", "bridge")
        sh("ip", "addr", "add", f"{NETWORK}.1/24", "dev", BRIDGE)
        sh("ip", "link", "set", BRIDGE, "up")
        for host in self.hosts:
            host.start()
        return self

    def __exit__(self, *_: object) -> None:
        for host in self.hosts:
            host.kill()
        sh("ip", "link", "del", BRIDGE, check=False)

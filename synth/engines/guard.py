"""Processes that must not outlive this one, however it dies.

vLLM's engine process does not notice that its parent was killed: it goes on holding the device. A guard is a shell
that waits on a pipe from this process; the kernel closes the pipe when this process is gone, and the shell kills
what it was told about.
"""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

WATCH_SECONDS = 0.2
"""How often new processes are looked for while something starts them."""

_SCRIPT = """
while read -r pid began; do known="$known $pid:$began"; done
for each in $known; do
    pid=${each%%:*}
    stat=$(cat "/proc/$pid/stat" 2>/dev/null) || continue
    set -- ${stat##*) }
    shift 19
    [ "$1" = "${each##*:}" ] && kill -9 "$pid" 2>/dev/null
done
"""
"""Kills what it has read, as soon as there is no more to read. A process is known by its number and the moment it began: after
days the number may be another one's."""


def began_at(pid: int) -> str | None:
    """Return when a process began, in clock ticks since boot (field 22 of proc(5)'s stat); None when it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return stat.rpartition(")")[2].split()[19]


class Guard:
    """Kills the processes it was told about as soon as this process is gone."""

    def __init__(self) -> None:
        self._shell = subprocess.Popen(
            ["/bin/sh", "-c", _SCRIPT],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # a signal to this process's group must not take the guard first
        )
        self._known = {child.pid for child in psutil.Process().children(recursive=True)}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Guard every process that is started, by whomever in this process, until the block ends."""
        over = threading.Event()

        def watch() -> None:
            while not over.wait(WATCH_SECONDS):
                self._tell()

        watcher = threading.Thread(target=watch, name="guard", daemon=True)
        watcher.start()
        try:
            yield
        finally:
            over.set()
            watcher.join()
            self._tell()

    def kill(self) -> None:
        """Kill them now."""
        self._tell()
        if self._shell.stdin:
            self._shell.stdin.close()  # as it would be if this process were gone
        self._shell.wait()

    def release(self) -> None:
        """Let the processes be; they have ended, or may live on."""
        self._shell.kill()
        self._shell.wait()
        if self._shell.stdin:
            self._shell.stdin.close()

    def _tell(self) -> None:
        new = {child.pid for child in psutil.Process().children(recursive=True)} - self._known
        self._known |= new
        if new and self._shell.stdin and not self._shell.stdin.closed:
            lines = [f"{pid} {began}\n" for pid in sorted(new) if (began := began_at(pid)) is not None]
            self._shell.stdin.write("".join(lines).encode())
            self._shell.stdin.flush()

"""Starting, watching and stopping processes, each by its own pid.

CPU time and memory are those of the whole tree below a process (nginx has a master and a worker), read from /proc.
"""

import os
import signal
import subprocess
import time
from pathlib import Path

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
# A process that doesn't end on SIGTERM by then is killed.
PATIENCE_SECONDS = 10


class Process:
    """A program pinned to one core; as a context manager it is stopped at the end, whatever happens."""

    def __init__(self, name, arguments, core, log, environment=None, cwd=None):
        self.name = name
        self.log = Path(log)
        self.started = time.monotonic()
        with open(self.log, "ab") as output:
            self.popen = subprocess.Popen(
                ["taskset", "-c", str(core), *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=cwd,
            )
        self.pid = self.popen.pid

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    def has_ended(self):
        return self.popen.poll() is not None

    def stop(self):
        """Ends the whole tree: politely first, then whatever is left of it."""
        if self.has_ended():
            return
        started = {pid: start_of(pid) for pid in tree(self.pid)}
        self.popen.terminate()
        try:
            self.popen.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            pass
        for pid, start in started.items():
            # The number alone could be another process by now.
            if start is not None and start_of(pid) == start:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
        self.popen.wait()

    def log_tail(self, lines=12):
        text = self.log.read_text(errors="replace").strip().splitlines()
        return "\n".join(text[-lines:]) or "(it wrote nothing)"

    def cpu_seconds(self):
        """User and system time of the tree since its start, to a hundredth of a second."""
        return sum(ticks_of(stat) for stat in map(stat_of, tree(self.pid)) if stat) / TICKS_PER_SECOND

    def waited_seconds(self):
        """Time that the tree's threads could have run but had to wait, because others had the core."""
        waited = 0
        for pid in tree(self.pid):
            for path in Path(f"/proc/{pid}/task").glob("*/schedstat"):
                try:
                    waited += int(path.read_text().split()[1])
                except (FileNotFoundError, ProcessLookupError):
                    pass  # The thread ended.
        return waited / 1e9

    def memory_bytes(self):
        """Resident and proportional set size of the tree; shared pages count fully in the first, by share in the second."""
        rss = pss = 0
        for pid in tree(self.pid):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                key, _, rest = line.partition(":")
                if key == "Rss":
                    rss += int(rest.split()[0]) * 1024
                elif key == "Pss":
                    pss += int(rest.split()[0]) * 1024
        return rss, pss


def stat_of(pid):
    """The fields of /proc/PID/stat from the third on; the second may hold blanks and parentheses. None when it ended."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return text[text.rindex(")") + 2 :].split()


def ticks_of(stat):
    """utime + stime (fields 14 and 15 of the file)."""
    return int(stat[11]) + int(stat[12])


def start_of(pid):
    """starttime (field 22): with the pid it names a process for good."""
    stat = stat_of(pid)
    return stat and stat[19]


def tree(root):
    """The process and everything below it."""
    children = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            stat = stat_of(int(entry))
            if stat:
                children.setdefault(int(stat[1]), []).append(int(entry))
    found, waiting = [], [root]
    while waiting:
        pid = waiting.pop()
        found.append(pid)
        waiting.extend(children.get(pid, []))
    return found

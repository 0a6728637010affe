"""Redis and a server of MongoDB's wire protocol beside a gateway, on the core of the load, and what Redis was asked."""

import os
import shutil
import socket
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path

from processes import Process

MONGO_BUILD = Path(__file__).resolve().parents[2] / "tests/cluster/mongo-wire/build"
START_SECONDS = 20
# Commands of this program.
OWN = ("info", "keys", "quit")


def missing():
    """What to install, as a sentence; None when all is there."""
    if not shutil.which("redis-server"):
        return "redis-server is missing: install the package redis-server."
    if mongo() is None:
        return f"a server of MongoDB's wire protocol is missing: {MONGO_BUILD} makes it, and needs Go."
    return None


def mongo():
    """Where the server is that `tests/cluster/mongo-wire/build` makes."""
    if named := os.environ.get("DOORMAN_TEST_MONGO"):
        return Path(named)
    built = subprocess.run([MONGO_BUILD], capture_output=True, text=True, check=False)
    return Path(built.stdout.strip()) if built.returncode == 0 else None


class Stores:
    """Both, empty; stopped at the end."""

    def __init__(self, core, folder, ports):
        documents = folder / "documents"
        documents.mkdir()
        self.commands = {
            "redis": ["redis-server", "--port", ports["redis"], "--bind", "127.0.0.1", "--save", "", "--dir", folder],
            "mongo": [mongo(), f"-listen=127.0.0.1:{ports['mongo']}", f"-data={documents}"],
        }
        self.ports, self.core, self.folder = ports, core, folder
        self.running = []
        self.stack = ExitStack()

    def __enter__(self):
        with ExitStack() as stack:
            for name, command in self.commands.items():
                process = Process(name, command, self.core, self.folder / f"{name}.log")
                self.running.append(stack.enter_context(process))
                while not listens(self.ports[name]):
                    if process.has_ended() or time.monotonic() - process.started > START_SECONDS:
                        raise RuntimeError(f"{name} did not start:\n{process.log_tail()}")
                    time.sleep(0.01)
            self.stack = stack.pop_all()
        return self

    def __exit__(self, *_):
        self.stack.close()

    def cpu_seconds(self):
        return sum(process.cpu_seconds() for process in self.running)

    def asked(self):
        """How often Redis ran each command so far, those of scripts and transactions included."""
        return commands_of(self.tell("INFO commandstats"))

    def keys(self):
        return {line for line in self.tell("KEYS *").splitlines() if not line.startswith(("*", "$", "+"))}

    def tell(self, command):
        """The answer as it comes; the last line is that of QUIT."""
        with socket.create_connection(("127.0.0.1", self.ports["redis"]), timeout=10) as connection:
            connection.sendall(f"{command}\r\nQUIT\r\n".encode())
            return b"".join(iter(lambda: connection.recv(65_536), b"")).decode()


def commands_of(info):
    """`cmdstat_get:calls=3,usec=..` by name; what this program asked itself is left out."""
    calls = {}
    for line in info.splitlines():
        name, colon, rest = line.partition(":calls=")
        if colon and name.startswith("cmdstat_"):
            calls[name.removeprefix("cmdstat_")] = int(rest.partition(",")[0])
    return {name: count for name, count in calls.items() if name not in OWN}


def between(before, after):
    return {name: count - before.get(name, 0) for name, count in after.items() if count > before.get(name, 0)}


def round_trips(calls):
    """Questions of requests: scripts, and transactions, each of which is sent and answered as one."""
    return sum(calls.get(name, 0) for name in ("evalsha", "eval", "exec"))


def listens(port):
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False

"""Servers of the binary that the sandbox found, arranged as operators arrange them: one, a cluster, sentinels, behind TLS.

It never touches a server that it did not start, and never listens on anything but 127.0.0.1.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import redis

from s3tasks.sandbox.processes import Child, Guardian, wait_until
from s3tasks.sandbox.redis_binary import find_redis_server, runnable
from s3tasks.sandbox.redis_server import free_loopback_port, is_answered_by

ADDRESS = "127.0.0.1"
SLOTS = 16384
_BUS_OFFSET = 10000
_START_SECONDS = 20.0


@dataclass
class Server:
    """One running server and an administrator's connection to it."""

    port: int
    child: Child
    admin: Any

    def kill(self) -> None:
        self.child.kill()


class Site:
    """A place to start servers in; all of them end with it."""

    def __init__(self) -> None:
        self._guardian = Guardian()
        self._servers: list[Server] = []
        self.directory = self._guardian.private_directory()
        self._binary = runnable(find_redis_server(), self.directory)

    def start(self, options: dict[str, str], *, sentinel: bool = False) -> Server:
        """A server with these settings on a port of its own."""
        port = _port_with_bus()
        directory = self.directory / str(port)
        directory.mkdir()
        settings = {"bind": ADDRESS, "port": str(port), "dir": str(directory), "protected-mode": "no"}
        if not sentinel:
            settings |= {"save": '""', "appendonly": "no", "repl-diskless-sync": "yes", "repl-diskless-sync-delay": "0"}
        settings |= options
        # Sentinels and cluster nodes write into their configuration.
        configuration = directory / "server.conf"
        configuration.write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
        command = [str(self._binary), str(configuration), *(["--sentinel"] if sentinel else [])]
        child = Child(self._guardian, command, directory / "server.log")
        server = Server(port, child, redis.Redis(port=port, socket_timeout=5))
        self._servers.append(server)
        if not wait_until(lambda: is_answered_by(port, child.pid) or not child.running, _START_SECONDS) or not child.running:
            raise RuntimeError(f"the server does not answer; it said:\n{child.log_tail()}")
        return server

    def close(self) -> None:
        for server in self._servers:
            server.admin.close()
            if server.child.running:
                server.child.kill()
        self._guardian.close()
        shutil.rmtree(self.directory, ignore_errors=True)


@contextmanager
def site() -> Iterator[Site]:
    """A site that is cleared at the end."""
    place = Site()
    try:
        yield place
    finally:
        place.close()


def start_cluster(place: Site, size: int = 3) -> list[Server]:
    """Nodes that hold all slots between them and have agreed on it. A lost node takes only its own slots with it."""
    options = {"cluster-enabled": "yes", "cluster-node-timeout": "1000", "cluster-require-full-coverage": "no"}
    nodes = [place.start(options) for _ in range(size)]
    bounds = [SLOTS * number // size for number in range(size + 1)]
    for node, first, end in zip(nodes, bounds[:-1], bounds[1:], strict=True):
        node.admin.execute_command("CLUSTER ADDSLOTS", *range(first, end))
        node.admin.execute_command("CLUSTER MEET", ADDRESS, nodes[0].port)
    if not wait_until(lambda: all(_knows_all(node, size) for node in nodes), _START_SECONDS, 0.05):
        raise RuntimeError("the cluster's nodes do not find each other")
    return nodes


def _knows_all(node: Server, size: int) -> bool:
    info = _fields(node.admin.execute_command("CLUSTER INFO"))
    return (info["cluster_state"], info["cluster_slots_ok"], info["cluster_size"]) == ("ok", str(SLOTS), str(size))


def _fields(answer: Any) -> dict[str, str]:
    if isinstance(answer, dict):
        return {str(name): str(value) for name, value in answer.items()}
    text = answer.decode() if isinstance(answer, bytes) else str(answer)
    return dict(line.split(":", 1) for line in text.split() if ":" in line)


@dataclass
class Watched:
    """A master, its replica, and the sentinel that watches them under the name `mymaster`."""

    master: Server
    replica: Server
    sentinel: Server

    def in_step(self) -> bool:
        """Whether the replica has all that the master has."""
        master, replica = self.master.admin.info("replication"), self.replica.admin.info("replication")
        linked = replica["role"] == "slave" and replica["master_link_status"] == "up"
        return bool(linked and replica["slave_repl_offset"] >= master["master_repl_offset"])


def start_watched(place: Site, password: str | None = None) -> Watched:
    """A master and a replica in step, and a sentinel that fails over half a second after the master has gone."""
    secret = {"requirepass": f'"{password}"', "masterauth": f'"{password}"'} if password else {}
    master = place.start(secret)
    replica = place.start({**secret, "replicaof": f"{ADDRESS} {master.port}"})
    for server in (master, replica):
        server.admin.close()
        server.admin = redis.Redis(port=server.port, password=password, socket_timeout=5)
    watched = {
        "sentinel monitor mymaster": f"{ADDRESS} {master.port} 1",
        "sentinel down-after-milliseconds mymaster": "500",
        "sentinel failover-timeout mymaster": "2000",
        **({"sentinel auth-pass mymaster": f'"{password}"'} if password else {}),
    }
    made = Watched(master, replica, master)
    if not wait_until(made.in_step, _START_SECONDS, 0.05):
        raise RuntimeError("the replica does not follow its master")
    made.sentinel = place.start(watched, sentinel=True)
    known = wait_until(lambda: _replicas_known(made.sentinel) == 1, _START_SECONDS, 0.05)
    if not known:
        raise RuntimeError("the sentinel does not see the replica")
    return made


def _replicas_known(sentinel: Server) -> int:
    return int(sentinel.admin.info("sentinel")["master0"]["slaves"])


def _port_with_bus() -> int:
    """A port whose cluster bus, ten thousand above, is free as well."""
    for _ in range(1000):
        port = free_loopback_port()
        if port + _BUS_OFFSET > 65535:
            port -= _BUS_OFFSET
        with contextlib.suppress(OSError), socket.socket() as own, socket.socket() as bus:
            own.bind((ADDRESS, port))
            bus.bind((ADDRESS, port + _BUS_OFFSET))
            return port
    raise RuntimeError("no port has a free cluster bus port")

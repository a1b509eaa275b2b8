"""Rows in Debian's redis-server, and a client for them that does as little as can be done."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np


class RedisRows:
    """A server without persistence that holds a row of ``size`` bytes a user, and one connection to it.

    Args:
        folder: of its socket.
        tcp: by TCP on loopback, instead of by a unix socket.
    """

    def __init__(self, folder: Path, size: int, tcp: bool = False) -> None:
        self._size, self._head = size, b"$%d\r\n" % size
        self.address: str | tuple[str, int] = str(folder / "redis.sock")
        where = ["--port", "0", "--unixsocket", str(self.address)]
        if tcp:
            with socket.create_server(("127.0.0.1", 0)) as free:
                self.address = free.getsockname()[:2]
            where = ["--bind", "127.0.0.1", "--port", str(self.address[1])]
        self._server = subprocess.Popen(
            ["redis-server", *where, "--save", "", "--appendonly", "no", "--dir", str(folder)],
            stdout=subprocess.DEVNULL,
        )
        self._wire = connect(self.address)

    def fill(self, rows: Iterable[tuple[np.ndarray, np.ndarray]]) -> None:
        """Store users and their rows, uint8 [n, size]."""
        for ids, block in rows:
            for user, row in zip(ids.tolist(), block, strict=True):
                key, value = b"%d" % user, self._head + row.tobytes()
                self._wire.sendall(b"*3\r\n$3\r\nSET\r\n$%d\r\n%s\r\n%s\r\n" % (len(key), key, value))
            _receive(self._wire, memoryview(bytearray(5 * len(ids))))

    def reader(self, ask: Callable[[], np.ndarray], out: np.ndarray) -> Callable[[], None]:
        """Reads the users of ``ask`` into ``out``, uint8 [B, size], by this connection."""
        return reader(self._wire, ask, out)

    def __enter__(self) -> RedisRows:
        return self

    def __exit__(self, *_: object) -> None:
        self._wire.close()
        self._server.terminate()
        self._server.wait()


def connect(address: str | tuple[str, int]) -> socket.socket:
    """A connection, as soon as the server takes one."""
    wire = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
    for _ in range(1_000):
        with contextlib.suppress(OSError):
            wire.connect(address)
            break
        time.sleep(0.01)
    if not isinstance(address, str):
        wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return wire


def reader(wire: socket.socket, ask: Callable[[], np.ndarray], out: np.ndarray) -> Callable[[], None]:
    """One pipelined MGET of as many keys as ``out`` has rows, received into one buffer: it knows the reply's size."""
    count, size = out.shape
    head, start = b"$%d\r\n" % size, b"*%d\r\n" % count
    step = len(head) + size + 2
    reply = bytearray(len(start) + count * step)
    rows = np.frombuffer(reply, np.uint8)[len(start) :].reshape(count, step)
    values = rows[:, len(head) : len(head) + size]

    def read() -> None:
        keys = [b"%d" % u for u in ask().tolist()]
        words = [b"*%d\r\n$4\r\nMGET\r\n" % (len(keys) + 1), *(b"$%d\r\n%s\r\n" % (len(k), k) for k in keys)]
        wire.sendall(b"".join(words))
        _receive(wire, memoryview(reply))
        np.copyto(out, values)

    return read


def _receive(wire: socket.socket, into: memoryview) -> None:
    got = 0
    while got < len(into):
        n = wire.recv_into(into[got:])
        if not n:
            raise RuntimeError("redis closed the connection")
        got += n

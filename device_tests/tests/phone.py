"""A phone on loopback: the device's side of adb, enough for the real client.

    python phone.py PORT ROOT ABI [EMULATOR]

It speaks version 1 of the protocol over TCP: CNXN, OPEN, OKAY, WRTE, CLSE; the services
``shell,v2`` (exit codes, stderr apart) and ``sync:`` (push, pull, stat). Commands are run by this
machine's ``sh`` with ROOT/bin first in the path, where ``getprop`` is. With an EMULATOR, programs
started through the ARM loader are started by it.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import shlex
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path

MAX_PAYLOAD = 256 * 1024
HEADER = struct.Struct("<6I")
STDOUT, STDERR, EXIT = 1, 2, 3


def command_id(name: str) -> int:
    return int.from_bytes(name.encode(), "little")


COMMANDS = {command_id(name): name for name in ("CNXN", "OPEN", "OKAY", "WRTE", "CLSE", "AUTH")}


class Connection:
    """One client connection, and the streams on it."""

    def __init__(self, link: socket.socket, emulator: str) -> None:
        self.link, self.emulator = link, emulator
        self.lock = threading.Lock()
        self.streams: dict[int, Stream] = {}

    def send(self, name: str, first: int, second: int, data: bytes = b"") -> None:
        number = command_id(name)
        head = HEADER.pack(number, first, second, len(data), sum(data), number ^ 0xFFFFFFFF)
        with self.lock:
            self.link.sendall(head + data)

    def receive(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            chunk = self.link.recv(count - len(data))
            if not chunk:
                raise EOFError
            data += chunk
        return data

    def serve(self) -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                number, first, second, length, _, _ = HEADER.unpack(self.receive(HEADER.size))
                self.answer(COMMANDS.get(number, ""), first, second, self.receive(length))

    def answer(self, name: str, first: int, second: int, data: bytes) -> None:
        stream = self.streams.get(second)
        if name == "CNXN":
            banner = b"device::ro.product.model=loopback;features=shell_v2,cmd"
            self.send("CNXN", 0x01000000, MAX_PAYLOAD, banner)
        elif name == "OPEN":
            stream = Stream(self, len(self.streams) + 1, first)
            self.streams[stream.own] = stream
            self.send("OKAY", stream.own, first)
            service = data.rstrip(b"\0").decode()
            threading.Thread(target=stream.serve, args=(service,), daemon=True).start()
        elif name == "WRTE" and stream:
            stream.feed(data)
            self.send("OKAY", second, first)
        elif name == "OKAY" and stream:
            stream.accepted.release()
        elif name == "CLSE" and stream:
            stream.feed(None)


class Stream:
    """One service in use."""

    def __init__(self, connection: Connection, own: int, other: int) -> None:
        self.connection, self.own, self.other = connection, own, other
        self.accepted = threading.Semaphore(0)
        self.arrived = threading.Condition()
        self.data, self.ended = b"", False

    def feed(self, data: bytes | None) -> None:
        with self.arrived:
            self.data += data or b""
            self.ended = self.ended or data is None
            self.arrived.notify_all()

    def read(self, count: int) -> bytes:
        with self.arrived:
            self.arrived.wait_for(lambda: len(self.data) >= count or self.ended)
            if len(self.data) < count:
                raise EOFError
            data, self.data = self.data[:count], self.data[count:]
            return data

    def write(self, data: bytes) -> None:
        for start in range(0, len(data), MAX_PAYLOAD):
            chunk = data[start : start + MAX_PAYLOAD]
            self.connection.send("WRTE", self.own, self.other, chunk)
            self.accepted.acquire()

    def serve(self, service: str) -> None:
        with contextlib.suppress(EOFError, OSError):
            kind, _, rest = service.partition(":")
            if kind.startswith("shell"):
                self.shell(rest)
            elif kind == "sync":
                self.sync()
        with contextlib.suppress(OSError):
            self.connection.send("CLSE", self.own, self.other)

    def shell(self, command: str) -> None:
        words = shlex.split(command)
        if self.connection.emulator and words[0].endswith("/ld-linux-aarch64.so.1"):
            command = shlex.join([self.connection.emulator, *words])
        child = subprocess.Popen(
            ["sh", "-c", command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        with selectors.DefaultSelector() as selector:
            selector.register(child.stdout, selectors.EVENT_READ, STDOUT)
            selector.register(child.stderr, selectors.EVENT_READ, STDERR)
            while selector.get_map():
                for key, _ in selector.select():
                    data = os.read(key.fd, 32768)
                    if data:
                        self.write(struct.pack("<BI", key.data, len(data)) + data)
                    else:
                        selector.unregister(key.fileobj)
        code = child.wait()
        self.write(struct.pack("<BIB", EXIT, 1, code if code >= 0 else 128 - code))

    def sync(self) -> None:
        while True:
            name, number = struct.unpack("<4sI", self.read(8))
            if name == b"QUIT":
                return
            path = self.read(number).decode()
            try:
                if name == b"STAT":
                    self.write(self.stat(Path(path)))
                elif name == b"SEND":
                    self.store(path)
                elif name == b"RECV":
                    self.load(Path(path))
            except OSError as error:
                words = (error.strerror or "failed").encode()
                self.write(struct.pack("<4sI", b"FAIL", len(words)) + words)

    def stat(self, path: Path) -> bytes:
        if not path.exists():
            return struct.pack("<4s3I", b"STAT", 0, 0, 0)
        found = path.stat()
        return struct.pack("<4s3I", b"STAT", found.st_mode, found.st_size, int(found.st_mtime))

    def store(self, request: str) -> None:
        path, _, mode = request.rpartition(",")
        failed: OSError | None = None
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with Path(path).open("wb", buffering=0) as file:
            # The client sends everything before it listens: read on, whatever went wrong.
            while (head := struct.unpack("<4sI", self.read(8)))[0] != b"DONE":
                data = self.read(head[1])
                try:
                    if failed is None:
                        file.write(data)
                except OSError as error:
                    failed = error
        if failed is not None:
            raise failed
        Path(path).chmod(int(mode) & 0o777 | 0o600)
        self.write(struct.pack("<4sI", b"OKAY", 0))

    def load(self, path: Path) -> None:
        with path.open("rb") as file:
            while data := file.read(65536):
                self.write(struct.pack("<4sI", b"DATA", len(data)) + data)
        self.write(struct.pack("<4sI", b"DONE", 0))


def main(port: str, root: str, abi: str, emulator: str = "") -> None:
    programs = Path(root) / "bin"
    programs.mkdir(parents=True, exist_ok=True)
    getprop = programs / "getprop"
    getprop.write_text(
        f"#!/bin/sh\ncase $1 in ro.product.cpu.abi) echo {abi};; ro.product.model) echo Loopback;; "
        "ro.build.version.release) echo 14;; esac\n"
    )
    getprop.chmod(0o755)
    os.environ["PATH"] = f"{programs}:{os.environ['PATH']}"
    listener = socket.create_server(("127.0.0.1", int(port)))
    print("listening", flush=True)
    while True:
        link, _ = listener.accept()
        threading.Thread(target=Connection(link, emulator).serve, daemon=True).start()


if __name__ == "__main__":
    main(*sys.argv[1:])

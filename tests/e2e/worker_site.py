"""Two nodes for real workers: an HMM each, one fork server and one store."""

import contextlib
import json
import os
import queue
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import defaultdict

from moectl.agents.launch.client import argv as fork_argv
from moectl.core.plan import (
    DeviceId,
)
from moectl.memory.hmm import wire
from moectl.memory.hmm.client import HmmClient

DEADLINE_S = 60.0
DEVICES = tuple(DeviceId(node, device) for node in ("n1", "n2") for device in ("d0", "d1"))
ADDRESS = {"n1": "127.0.0.11", "n2": "127.0.0.12"}


def started(command, ready_fd):
    read_fd, write_fd = os.pipe()
    process = subprocess.Popen(
        [part.replace("READY", str(write_fd)) for part in command], pass_fds=[write_fd]
    )
    os.close(write_fd)
    with os.fdopen(read_fd, "rb") as pipe:
        assert pipe.read(5) == b"ready", command
    return process


class Frames:
    """A socket that speaks frames, with a thread that reads them."""

    def __init__(self, sock, on_message):
        self._sock, self._on_message = sock, on_message
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def send(self, message):
        body = json.dumps(message).encode()
        self._sock.sendall(len(body).to_bytes(4, "big") + body)

    def _read(self):
        with contextlib.suppress(OSError), self._sock.makefile("rb") as stream:
            while head := stream.read(4):
                self._on_message(json.loads(stream.read(int.from_bytes(head, "big"))))
        self._on_message(None)

    def close(self):
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._thread.join(5)
        self._sock.close()


class Handle:
    """The test's end of one worker: control as its agent, data as a gateway."""

    def __init__(self, fleet, device, pid, control_path):
        self.fleet, self.device, self.pid = fleet, device, pid
        self._replies, self._events, self._number = queue.Queue(), queue.Queue(), 0
        self._seen = defaultdict(list)
        sock = socket.socket(socket.AF_UNIX)
        until = time.monotonic() + DEADLINE_S
        while True:
            try:
                sock.connect(str(control_path))
                break
            except OSError:
                assert time.monotonic() < until, f"the worker on {device} does not listen"
                time.sleep(0.02)
        self._control = Frames(sock, self._on_control)
        self.address = self.call("status")["data_address"]
        host, port = self.address.split(":")
        self._data = Frames(socket.create_connection((host, int(port))), self._on_data)
        self._data.send({"hello": 1, "secret": "s3cret"})

    def call(self, op, **fields):
        reply = self.ask(op, **fields)
        assert reply.get("ok"), reply
        return reply

    def ask(self, op, **fields):
        """The reply, whatever it says."""
        self._number += 1
        self._control.send({"id": self._number, "op": op, **fields})
        return self._replies.get(timeout=DEADLINE_S)

    def event(self, name):
        """The next event of that name; others wait for whoever asks for them."""
        while not self._seen[name]:
            event = self._events.get(timeout=DEADLINE_S)
            self._seen[event["event"]].append(event)
        return self._seen[name].pop(0)

    def submit(self, stream, **more):
        self._data.send({
            "op": "submit", "id": stream.name, "prompt": list(stream.prompt),
            "already": list(stream.tokens), "max_tokens": stream.count, "eos": [],
            "sampling": stream.sampling, **more,
        })  # fmt: skip

    def close(self):
        self._control.close()
        self._data.close()

    def _on_control(self, message):
        if message is not None:
            (self._events if "event" in message else self._replies).put(message)

    def _on_data(self, message):
        if message is None or "ok" in message:
            if message is None:
                self.fleet.lost(self.device)
            return
        for name in message.get("continued", ()):
            self.fleet.streams[name].continued += 1
        for name, index, token in message["tokens"]:
            self.fleet.streams[name].token(index, token)
        for name, reason in message["done"]:
            self.fleet.streams[name].done(reason)


class Site:
    """Two nodes of two devices, a fork server and a store; they outlive the tests' fleets."""

    def __init__(self, root):
        self.root, self._processes = root, []
        self._hmms, self._hmm_commands = {}, {}
        (root / "secret").write_text("s3cret")
        for node in ADDRESS:
            devices = [{"id": d, "hbm_bytes": 4 << 20, "page_bytes": 16384} for d in ("d0", "d1")]
            (root / node).mkdir(mode=0o700)
            self._hmm_commands[node] = [
                sys.executable, "-P", "-m", "moectl.memory.hmm.server", "--socket",
                str(root / node / "hmm.sock"), "--node", node, "--devices", json.dumps(devices),
                "--ready-fd", "READY",
            ]  # fmt: skip
            self._hmms[node] = started(self._hmm_commands[node], "READY")
        command = [
            "READY" if part == "0" else part for part in fork_argv(root / "n1" / "fork.sock", 0)
        ]
        self._processes.append(started(command, "READY"))
        self._fork = socket.socket(socket.AF_UNIX)
        self._fork.connect(str(root / "n1" / "fork.sock"))
        self.store = self.fork("spawn_store", host="127.0.0.11")

    def fork(self, op, **fields):
        self._fork.sendall(wire.pack({"op": op, **fields}))
        head = self._fork.recv(4, socket.MSG_WAITALL)
        body = self._fork.recv(int.from_bytes(head, "big"), socket.MSG_WAITALL)
        reply = wire.unpack(body)
        assert reply["ok"], reply
        return reply

    def kill_hmm(self, node):
        """kill -9, and start another one in its place; returns when that one is ready."""
        self._hmms[node].kill()
        self._hmms[node].wait(DEADLINE_S)
        self._hmms[node] = started(self._hmm_commands[node], "READY")

    def hmm(self, node):
        return HmmClient(self.root / node / "hmm.sock", "test")

    def close(self):
        os.kill(self.store["pid"], signal.SIGTERM)
        for process in [*self._processes, *self._hmms.values()]:
            process.terminate()
            assert process.wait(20) in (0, -signal.SIGTERM)


def wait_gone(pid):
    with contextlib.suppress(ProcessLookupError):
        handle = os.pidfd_open(pid)
        try:
            poller = select.poll()
            poller.register(handle, select.POLLIN)
            assert poller.poll(DEADLINE_S * 1000), f"process {pid} does not end"
        finally:
            os.close(handle)

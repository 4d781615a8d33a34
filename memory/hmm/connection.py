"""What does the HMM hold for one client, and when has it had enough of it?

Bytes in, requests answered one by one, bytes and descriptors out, without ever blocking. Limits: a
frame's size (small until the client has said hello), the time a half-sent message may take, and the
replies that a client may leave unread. Crossing one raises ProtocolError, which the loop turns into
the end of this connection.
"""

import contextlib
import os
import socket
from collections import deque
from collections.abc import Iterable

from ...core.errors import InvariantError, MoectlError, ProtocolError
from . import wire
from .requests import error_body
from .table import Answer, Session, Table

READ_BYTES = 256 * 1024
READS_PER_TURN = 16  # 4 MiB, then it is another client's turn
OUTPUT_BYTES_MAX = 2 * wire.FRAME_BYTES_MAX
OUTPUT_ITEMS_MAX = 4096
FDS_PER_REQUEST_MAX = 8  # an offer brings one
MESSAGE_S_MAX = 10.0  # from a message's first byte to its last, and for reading a reply


class Connection:
    """One client's socket, buffers and session."""

    def __init__(self, sock: socket.socket, table: Table, session: Session | None = None) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.session = session if session is not None else Session()
        self.deadline: float | None = None  # when this client counts as stalled
        self.pending = b"", b""  # unread and unsent bytes of a predecessor, see `go_on`
        self._table = table
        is_known = bool(self.session.name)
        limit = wire.FRAME_BYTES_MAX if is_known else wire.GREETING_BYTES_MAX
        self._reader = wire.FrameReader(limit)
        self._output: deque[tuple[memoryview, tuple[int, ...], bool]] = deque()
        self._output_bytes = 0
        self._progressed = False

    @property
    def has_output(self) -> bool:
        """Whether replies wait; then nothing more is read, so a client cannot make us hoard."""
        return bool(self._output)

    def read(self) -> None:
        """Take what has arrived and answer whole messages.

        Raises ProtocolError on nonsense, ConnectionResetError when the client is gone.
        """
        for _ in range(READS_PER_TURN):
            try:
                data, fds, _, _ = socket.recv_fds(
                    self.sock, READ_BYTES, FDS_PER_REQUEST_MAX, socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                break
            self.session.fds += fds
            if len(self.session.fds) > FDS_PER_REQUEST_MAX:
                raise ProtocolError("it sends descriptors that nobody asked for")
            if not data:
                raise ConnectionResetError("it closed the connection")
            self._reader.feed(data)
            self._answer_whole_messages()

    def write(self) -> None:
        """Send what waits, as far as the socket takes it; descriptors go with their first byte."""
        while self._output:
            data, fds, is_given = self._output[0]
            try:
                sent = socket.send_fds(self.sock, [data], fds) if fds else self.sock.send(data)
            except BlockingIOError:
                return
            self._output_bytes -= sent
            self._progressed = True
            if is_given:
                _close_all(fds)
            if sent < len(data):
                self._output[0] = (data[sent:], (), False)
            else:
                self._output.popleft()

    def set_deadline(self, now: float) -> None:
        """After reading and writing: a client that owes us bytes must not owe them for ever."""
        if self._progressed or not (self._reader.is_mid_message or self.has_output):
            self.deadline = None
        self._progressed = False
        if self.deadline is None and (self._reader.is_mid_message or self.has_output):
            self.deadline = now + MESSAGE_S_MAX

    def refuse(self, error: MoectlError) -> None:
        """Tell why, as far as the socket takes it without waiting; the loop closes it next."""
        with contextlib.suppress(MoectlError, OSError):
            self._queue(wire.pack({"ok": False, "error": error_body(error)}))
            self.write()

    def close(self) -> None:
        """Close the socket and every descriptor that was on its way."""
        self.sock.close()
        _close_all(self.session.fds)
        self.session.fds.clear()
        for _, fds, is_given in self._output:
            if is_given:
                _close_all(fds)
        self._output.clear()

    def pack(self) -> dict[str, object] | None:
        """What a successor has to know of this client; None when it cannot be handed on now."""
        if self.session.fds or any(fds for _, fds, _ in self._output):
            return None
        unsent = b"".join(bytes(data) for data, _, _ in self._output)
        process = self.session.process
        return {
            "name": self.session.name,
            "process": [process.pid, process.start_ticks],
            "reservations": sorted(self.session.reservations),
            "maps": self.session.maps,
            "asked": self._table.asked_by(self.session),
            "unread": self._reader.rest().hex(),
            "unsent": unsent.hex(),
        }

    def go_on(self) -> None:
        """Go on where the predecessor was with this client; raises like `read`."""
        (unread, unsent), self.pending = self.pending, (b"", b"")
        if unsent:
            self._queue(unsent)
        if unread:
            self._reader.feed(unread)
            self._answer_whole_messages()

    def _answer_whole_messages(self) -> None:
        while not self.session.takes_over and (request := self._reader.next()) is not None:
            try:
                self._answer(request)
            finally:
                _close_all(self.session.fds)  # what an operation keeps, it has taken out
                self.session.fds.clear()
            self._progressed = True
            if self.session.name:
                self._reader.limit = wire.FRAME_BYTES_MAX

    def _answer(self, request: dict[str, object]) -> None:
        try:
            answer = self._table.answer(self.session, request)
        except (MoectlError, InvariantError) as error:
            if not self.session.name:
                raise  # not even a greeting: no reason to go on listening
            self._queue(wire.pack({"ok": False, "error": error_body(error)}))
            return
        self._queue_answer(answer)

    def _queue_answer(self, answer: Answer) -> None:
        self._queue(wire.pack({"ok": True, "fds": len(answer.fds), **answer.body}))
        for at in range(0, len(answer.fds), wire.FDS_PER_MESSAGE):
            self._queue(b"F", answer.fds[at : at + wire.FDS_PER_MESSAGE], answer.is_given)

    def _queue(self, data: bytes, fds: tuple[int, ...] = (), is_given: bool = False) -> None:
        self._output.append((memoryview(data), fds, is_given))
        self._output_bytes += len(data)
        if self._output_bytes > OUTPUT_BYTES_MAX or len(self._output) > OUTPUT_ITEMS_MAX:
            raise ProtocolError("it asks without reading the answers")


def _close_all(fds: Iterable[int]) -> None:
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)

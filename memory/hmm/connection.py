"""What does the HMM hold for one client, and when has it had enough of it?

Bytes in, requests answered one by one, bytes and descriptors out, without ever blocking. Limits: a
frame's size (small until the client has said hello), the time a half-sent message may take, and the
replies that a client may leave unread. Crossing one raises ProtocolError, which the loop turns into
the end of this connection.
"""

import contextlib
import socket
from collections import deque

from ...core.errors import InvariantError, MoectlError, ProtocolError
from . import wire
from .table import Answer, Session, Table, error_body

READ_BYTES = 256 * 1024
READS_PER_TURN = 16  # 4 MiB, then it is another client's turn
OUTPUT_BYTES_MAX = 2 * wire.FRAME_BYTES_MAX
OUTPUT_ITEMS_MAX = 4096
MESSAGE_S_MAX = 10.0  # from a message's first byte to its last, and for reading a reply


class Connection:
    """One client's socket, buffers and session."""

    def __init__(self, sock: socket.socket, table: Table) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.session = Session()
        self.deadline: float | None = None  # when this client counts as stalled
        self._table = table
        self._reader = wire.FrameReader(wire.GREETING_BYTES_MAX)
        self._output: deque[tuple[memoryview, tuple[int, ...]]] = deque()
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
                data = self.sock.recv(READ_BYTES)
            except BlockingIOError:
                break
            if not data:
                raise ConnectionResetError("it closed the connection")
            self._reader.feed(data)
            self._answer_whole_messages()

    def write(self) -> None:
        """Send what waits, as far as the socket takes it; descriptors go with their first byte."""
        while self._output:
            data, fds = self._output[0]
            try:
                sent = socket.send_fds(self.sock, [data], fds) if fds else self.sock.send(data)
            except BlockingIOError:
                return
            self._output_bytes -= sent
            self._progressed = True
            if sent < len(data):
                self._output[0] = (data[sent:], ())
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

    def _answer_whole_messages(self) -> None:
        while (request := self._reader.next()) is not None:
            self._answer(request)
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
            self._queue(b"F", answer.fds[at : at + wire.FDS_PER_MESSAGE])

    def _queue(self, data: bytes, fds: tuple[int, ...] = ()) -> None:
        self._output.append((memoryview(data), fds))
        self._output_bytes += len(data)
        if self._output_bytes > OUTPUT_BYTES_MAX or len(self._output) > OUTPUT_ITEMS_MAX:
            raise ProtocolError("it asks without reading the answers")

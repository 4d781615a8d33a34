"""How does a child of the fork server host the TCPStore in which process groups meet?"""

import os
import selectors
import signal
import socket


def host_store(listener: socket.socket, host: str, port: int, ready_fd: int) -> int:
    """Serve a store on a socket that is bound already until told to end; the exit code."""
    from torch import distributed

    store = distributed.TCPStore(
        host,
        port,
        is_master=True,
        wait_for_workers=False,
        master_listen_fd=listener.detach(),
    )
    os.write(ready_fd, b"r")
    os.close(ready_fd)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    del store
    return 0


def is_readable(fd: int, deadline_s: float) -> bool:
    """Whether something, or the end, comes in time."""
    with selectors.DefaultSelector() as selector:
        selector.register(fd, selectors.EVENT_READ)
        return bool(selector.select(deadline_s))

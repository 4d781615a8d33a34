"""What happens on Ctrl-C? Work that may be undone is interrupted; the undoing itself is not.

`interruptible` makes SIGTERM and SIGHUP mean the same as Ctrl-C, so that a closed terminal rolls
back too; `shielded` keeps a second Ctrl-C from orphaning what the first one is cleaning up.
"""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

Handler = Callable[[int, FrameType | None], object] | signal.Handlers
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP raise KeyboardInterrupt inside the block."""
    with _handlers(_interrupt):
        yield


@contextlib.contextmanager
def shielded() -> Iterator[None]:
    """The same signals are ignored inside the block; keep it short, and bounded by deadlines."""
    with _handlers(signal.SIG_IGN):
        yield


@contextlib.contextmanager
def _handlers(handler: Handler) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # Python delivers signals to the main thread only
        return
    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)

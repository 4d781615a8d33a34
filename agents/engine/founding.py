"""What if no process is left that forks workers, nor its spare? A rank that serves forks one.

A worker has imported all that a fork server has, and there is one wherever a model is served: so no
scale of a serving node ever waits seconds for an import. The price is one pause of the engine
between two steps, for as long as the kernel copies page tables (milliseconds), and only when
everything that was made to fork is dead.

Forking a process with several threads is safe here because nothing is taken along but code:

- The engine's thread is held between two steps meanwhile, outside of the tensor library; every
  other thread of a serving worker waits or copies bytes. No lock of a library is held.
- The new process keeps one thread, closes every descriptor (a connection to the HMM that stays
  open would keep a dead worker's pages) and lets go of the memory of devices and of its group.
- What it inherited is frozen and never freed: no destructor runs on descriptors that are others'.
- It is forked twice, so that it is nobody's child here, and by a thread that never computed: a
  pool of arithmetic threads that is not there any more is not remembered.

A process that uses an accelerator cannot be forked: it refuses.
"""

import contextlib
import gc
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch

from ...core.errors import EngineError, WorkerError
from ...memory.inherited import drop_shared_mappings
from ..launch.group_store import is_readable
from .engine import Engine
from .steps import LoopState, StepLoop

#: How long the engine may take to come to the end of its step, and then be held.
PAUSE_S = 2.0
#: How long the new process may take to name itself.
NAMED_S = 5.0


def fork_server(loop: StepLoop, socket_path: Path, log_path: Path) -> int:
    """Fork a process that will serve forks at `socket_path`; returns its process id.

    Never called by the engine's thread. Raises WorkerError when this worker does not serve, and
    EngineError when the new process did not come up.
    """
    if loop.state is not LoopState.SERVING:
        raise WorkerError("this worker does not serve: another one can fork the server")
    if torch.cuda.is_initialized():
        raise WorkerError("a process that uses an accelerator cannot be forked")
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb", buffering=0) as pipe:
        try:
            with _between_steps(loop), warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # of threads: see above
                child = os.fork()
                if child == 0:
                    _found(writing, socket_path, log_path)
        finally:
            os.close(writing)
        name = pipe.read(32) if is_readable(reading, NAMED_S) else b""
    if not name:
        os.kill(child, signal.SIGKILL)  # one that hangs would hold up this thread for good
    os.waitpid(child, 0)  # it ends as soon as it has forked
    if not name:
        raise EngineError("the fork server that this worker forked did not come up")
    return int(name)


@contextlib.contextmanager
def _between_steps(loop: StepLoop) -> Iterator[None]:
    """Hold the engine's thread at the end of its step."""
    reached, go_on = threading.Event(), threading.Event()

    def hold(engine: Engine) -> None:
        reached.set()
        go_on.wait(PAUSE_S)

    loop.tell(hold)
    try:
        if not reached.wait(PAUSE_S):
            raise WorkerError("the engine took too long to come to the end of its step")
        yield
    finally:
        go_on.set()


def _found(writing: int, socket_path: Path, log_path: Path) -> None:
    """The rest of the forked process's life; never returns."""
    try:
        pid = os.fork()
        if pid:
            os.write(writing, str(pid).encode())
            os._exit(0)
        gc.freeze()
        _let_go()
        from ..launch.forkserver import serve_forked

        serve_forked(socket_path, log_path)
    finally:
        os._exit(70)


def _let_go() -> None:
    """Drop what a worker holds: memory of devices and groups, descriptors, streams with locks."""
    drop_shared_mappings()
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    # Whoever wrote at the instant of the fork holds the locks of these for ever.
    sys.stdout, sys.stderr = (
        os.fdopen(fd, "w", buffering=1, errors="backslashreplace", closefd=False) for fd in (1, 2)
    )

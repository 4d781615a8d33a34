"""A worker that answers nothing is ended; one that is only slow is not."""

import os
import signal
import subprocess
import sys
import time

from moectl.agents.pulse import SILENT_LOOKS, STOPPED_LOOKS, Pulse
from moectl.core.paths import process_id


def missing(looks: int) -> Pulse:
    pulse = Pulse()
    for _ in range(looks):
        pulse.missed_one()
    return pulse


def test_a_running_process_is_given_many_looks_and_a_stopped_one_few() -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        process = process_id(child.pid)
        assert process is not None
        assert missing(STOPPED_LOOKS).verdict(process) == ""
        assert missing(SILENT_LOOKS).verdict(process) != ""
        os.kill(child.pid, signal.SIGSTOP)
        until = time.monotonic() + 10
        while not missing(STOPPED_LOOKS).verdict(process) and time.monotonic() < until:
            time.sleep(0.01)  # the kernel stops it soon, not at once
        assert "stopped" in missing(STOPPED_LOOKS).verdict(process)
        assert missing(STOPPED_LOOKS - 1).verdict(process) == ""
    finally:
        child.kill()
        child.wait()


def test_one_answer_starts_the_count_anew() -> None:
    pulse = missing(SILENT_LOOKS)
    pulse.heard()
    assert pulse.missed == 0

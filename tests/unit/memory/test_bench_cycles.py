"""Do the memory benches count what they say they count? Small runs; no figure is looked at."""

import subprocess
import sys
from pathlib import Path

import pytest

from moectl.cli.bench.frame import BenchOptions
from moectl.cli.bench.memory_waste import waste_bench
from moectl.core.errors import RefusedError

from .conftest import RunningHmm


def test_cycles_and_kills_leave_nothing_behind(hmm: RunningHmm) -> None:
    argv = [sys.executable, "-P", "-m", "moectl.cli.bench.memory_cycles", str(hmm.socket)]
    argv += [str(hmm.process.pid), "6", "6", "3", "60"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    expected = '{"cycles": 6, "kills": 6, "leaked_pages": 0, "leaked_fds": 0, "leaked_maps": 0, '
    assert done.stdout.strip() == expected + '"corruptions": 0}'


def test_without_the_data_the_bench_names_the_missing_file(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match=r"esft/intent.json: missing"):
        waste_bench(BenchOptions(data=tmp_path))

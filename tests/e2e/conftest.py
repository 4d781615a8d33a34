"""Makes the parts that drive real processes importable by the tests beside them, and the fleet of
real workers that several of them drive (no etcd, no controller).

What is dear to start is started once: two nodes and a fork server for all tests of real
workers, one embedded fleet for all that only use one.
"""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    from worker_model import write_checkpoint

    return write_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def expected(checkpoint):
    """What one rank with every expert says: the run that never scaled."""
    from worker_model import Alone

    return Alone(checkpoint)


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    from worker_site import Site

    running = Site(tmp_path_factory.mktemp("site"))
    yield running
    running.close()
    for log in sorted(running.root.glob("*.log")):
        print(f"--- {log.name}\n{log.read_text()}", file=sys.stderr)


@pytest.fixture(scope="session")
def running_home():
    """An embedded fleet on the local spec, 2 of 4 devices wide at its start: who uses it leaves it
    healthy, whatever its width."""
    from embedded_fleet import FREE_PORTS, fleet_home

    with fleet_home() as found:
        answer = found.run("up", *FREE_PORTS)
        assert answer.returncode == 0, answer.stderr
        yield found


@pytest.fixture
def fleet(site, checkpoint):
    from worker_fleet import Fleet

    running = Fleet(site, checkpoint)
    yield running
    running.close()

"""etcd or the controller is gone for a while: does anybody who is being served notice?

MOECTL_AWAY_S sets how long: 3 s here, 20 s in the figures of docs/store.md.
"""

import contextlib
import json
import os
import signal
import threading
import time
from pathlib import Path

import httpx
import pytest
from embedded_fleet import Fleet

AWAY_S = float(os.environ.get("MOECTL_AWAY_S", "3"))


class Streams:
    """Requests that stream without a pause until told to stop; counts whole and broken ones."""

    def __init__(self, fleet: Fleet, count: int = 3) -> None:
        instance = json.loads((fleet.home / "instance.json").read_text())
        self.url = f"http://127.0.0.1:{instance['ports']['gateway']}/v1/completions"
        self.token = (fleet.home / "token").read_text().strip()
        self.whole, self.failures = 0, list[str]()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(i,)) for i in range(count)]
        for thread in self._threads:
            thread.start()

    def _run(self, number: int) -> None:
        with httpx.Client(timeout=60, trust_env=False) as client:
            while not self._stop.is_set():
                try:
                    self._one(client, number)
                    self.whole += 1
                except (httpx.HTTPError, AssertionError) as error:
                    self.failures.append(repr(error))

    def _one(self, client: httpx.Client, number: int) -> None:
        body = {
            "model": "chat",
            "prompt": f"def f{number}(",
            "max_tokens": 48,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            "ignore_eos": True,
        }
        headers = {"Authorization": f"Bearer {self.token}"}
        with client.stream("POST", self.url, json=body, headers=headers) as answer:
            if answer.status_code == 400:  # a gateway without ignore_eos: its own stop is fine
                raise AssertionError(answer.read().decode())
            assert answer.status_code == 200, answer.read()
            lines = [line for line in answer.iter_lines() if line.startswith("data: ")]
        assert lines[-1] == "data: [DONE]", lines[-1:]
        assert not any('"error"' in line for line in lines)

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=60)


@pytest.fixture
def fleet(running_home: Fleet) -> Fleet:
    return running_home


def catch_up(fleet: Fleet) -> None:
    """Wait until everything is seen again: nodes, ready models, a store that tells things."""
    instance = json.loads((fleet.home / "instance.json").read_text())
    url = f"http://127.0.0.1:{instance['ports']['api']}/v1/fleet"
    headers = {"Authorization": f"Bearer {(fleet.home / 'token').read_text().strip()}"}
    started, seen = time.monotonic(), ""
    while time.monotonic() - started < 60:
        with contextlib.suppress(httpx.HTTPError, KeyError, IndexError):
            told = httpx.get(url, headers=headers, timeout=5, trust_env=False).json()
            ready = [
                c["status"]
                for c in told["models"][0]["status"]["conditions"]
                if c["type"] == "Ready"
            ]
            seen = f"{ready} {told['missing_nodes']} {told['store_age_s']}"
            if ready == ["True"] and not told["missing_nodes"] and told["store_age_s"] < 3:
                return
        time.sleep(0.1)
    raise AssertionError(f"never caught up: {seen}")


@pytest.mark.parametrize(("role", "width"), [("etcd", "3"), ("controller", "2")])
def test_a_part_of_the_control_plane_away_costs_no_request(
    fleet: Fleet, role: str, width: str
) -> None:
    streams = Streams(fleet)
    try:
        time.sleep(1.0)
        os.kill(fleet.pid(role), signal.SIGKILL)
        before = streams.whole
        time.sleep(AWAY_S + (3.0 if role == "etcd" and AWAY_S < 6 else 0.0))
        assert streams.whole > before, "nothing was served meanwhile"
        told = fleet.run("status")
        assert told.returncode == 1
        assert ("stale" if role == "etcd" else "as last seen") in told.stdout, told.stdout
        started = time.monotonic()
        again = fleet.run("up")
        assert again.returncode == 0, again.stderr
        catch_up(fleet)
        seconds = time.monotonic() - started  # the start of the process itself included
        scaled = fleet.run("scale", "chat", "--experts", width)
        assert scaled.returncode == 0, scaled.stderr
    finally:
        streams.stop()
    print(
        f"{role} away {AWAY_S:g} s: {streams.whole} whole, {len(streams.failures)} failed,"
        f" up and caught up in {seconds:.1f} s"
    )
    assert streams.failures == []
    assert Path(fleet.home / "logs" / "controller.log").read_text().count("Traceback") == 0

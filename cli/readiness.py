"""Does a part of the embedded fleet answer? One check for each role, with the end of its log on
death.
"""

from collections.abc import Callable

import httpx

from ..core.paths import Home
from . import waiting
from .client import ApiClient
from .instance import Instance, read_token
from .launch import Started, check_alive
from .parts import Part

PROBE_DEADLINE_S = 2.0


def wait_part(
    home: Home, instance: Instance, part: Part, started: Started | None, deadline_s: float
) -> None:
    """Wait until a part answers; raises MoectlError when it dies, DeadlineError when it is mute."""
    answers = check_for(home, instance, part, started)

    def check() -> bool:
        if started is not None:
            check_alive(home, started)
        return answers()

    waiting.wait_until(f"{part.role} (log: {home.log_file(part.role)})", deadline_s, check)


def check_for(
    home: Home, instance: Instance, part: Part, started: Started | None
) -> Callable[[], bool]:
    """The question that tells whether a role is up."""
    if part.role == "etcd":
        url = f"http://{instance.etcd_endpoint}/health"
        return lambda: '"true"' in _text_of(url)
    if part.role == "controller":
        return lambda: bool(_text_of(f"{instance.api_url}/v1/healthz"))
    if part.role == "gateway":
        return lambda: bool(_text_of(f"{instance.gateway_url}/healthz"))
    node = part.role.removeprefix("agent-")
    pid = started.process.pid if started is not None else None
    return lambda: _node_joined(home, instance, node, pid)


def _node_joined(home: Home, instance: Instance, node: str, pid: int | None) -> bool:
    """Whether the node's record is there, and of this very agent (an old lease may linger)."""
    with ApiClient(instance.api_url, read_token(home), deadline_s=PROBE_DEADLINE_S) as client:
        return any(
            seen.name == node and pid in (None, seen.agent_pid) for seen in client.fleet().nodes
        )


def _text_of(url: str) -> str:
    """The body of a 200 answer, or nothing."""
    try:
        answer = httpx.get(url, timeout=PROBE_DEADLINE_S, trust_env=False)
    except httpx.HTTPError:
        return ""
    return answer.text if answer.status_code == 200 else ""

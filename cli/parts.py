"""What does each process of an embedded fleet start with? Its command line and its settings file.

Pure descriptions; `launch.py` starts them. Roles: etcd, controller, gateway, agent-NODE. The HMM,
the fork server and the workers are children of the agents.
"""

import hashlib
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..core.paths import HOME_VARIABLE, INSTANCE_VARIABLE, Home
from ..core.units import parse_duration_s
from .instance import Instance
from .ports import LOOPBACK

# Ended in this order: no new request, no new decision, then the workers, last the store.
STOP_ORDER = ("gateway", "controller", "agent-", "etcd")
# Seconds between SIGTERM and SIGKILL. An agent ends its workers, fork server and HMM first.
GRACE_S = {"gateway": 5.0, "controller": 5.0, "agent-": 15.0, "etcd": 10.0}


@dataclass(frozen=True, slots=True)
class Part:
    """One process to start: `settings` is written to a private file that the process reads."""

    role: str
    argv: tuple[str, ...]
    settings: Mapping[str, Any] | None = None
    environment: Mapping[str, str] = field(default_factory=dict)


def controller_part(home: Home, instance: Instance, token: str) -> Part:
    """The reconcile loop and the API."""
    settings = {
        "cluster": instance.cluster,
        "etcd": [instance.etcd_endpoint],
        "host": LOOPBACK,
        "port": instance.ports.api,
        "admin_token_digest": hashlib.sha256(token.encode()).hexdigest(),
        "instance": instance.instance,
    }
    return _python_part(home, "controller", "moectl.controller.server", settings)


def gateway_part(home: Home, instance: Instance) -> Part:
    """The OpenAI-compatible front door."""
    settings = {
        "cluster": instance.cluster,
        "etcd": [instance.etcd_endpoint],
        "host": LOOPBACK,
        "port": instance.ports.gateway,
        "secret_file": str(home.internal_key_file),
        "instance": instance.instance,
    }
    return _python_part(home, "gateway", "moectl.agents.gateway.app", settings)


def agent_part(home: Home, instance: Instance, node: Mapping[str, Any]) -> Part:
    """The agent of one declared node; `node` is the node of the canonical Cluster spec."""
    devices = [
        {
            "id": device["id"],
            "kind": device["kind"],
            "hbm_bytes": device["hbm"],
            "page_bytes": device["pageSize"],
            "pretouch_bytes": -1 if device.get("pretouch") is None else device["pretouch"],
        }
        for device in node["devices"]
    ]
    settings = {
        "node": {"name": node["name"], "address": node["address"], "devices": devices},
        "cluster": instance.cluster,
        "etcd": [instance.etcd_endpoint],
        "node_dir": str(home.node(node["name"]).root),
        "secret_file": str(home.internal_key_file),
        "instance": instance.instance,
        "lease_ttl_s": parse_duration_s(instance.spec["leaseTtl"]),
        "siblings": [other["name"] for other in instance.nodes if other["name"] != node["name"]],
    }
    return _python_part(home, f"agent-{node['name']}", "moectl.agents.agent", settings)


def environment(instance: Instance, home: Home, extra: Mapping[str, str]) -> dict[str, str]:
    """The environment of a part: ours, marked with the instance so that nothing can be lost."""
    values = dict(os.environ)
    values[INSTANCE_VARIABLE] = instance.instance
    values[HOME_VARIABLE] = str(home.root)
    values["PYTHONUNBUFFERED"] = "1"
    # torch would otherwise leave a folder in /tmp; this one ends with the fleet.
    values["TORCHINDUCTOR_CACHE_DIR"] = str(home.run_dir / "torch")
    values.update(extra)
    return values


def stop_rank(role: str) -> int:
    """The place of a role in the order of ending; unknown roles come first."""
    for place, prefix in enumerate(STOP_ORDER):
        if role.startswith(prefix):
            return place
    return -1


def grace_s(role: str) -> float:
    """How long a role may take to end by itself."""
    return next((s for prefix, s in GRACE_S.items() if role.startswith(prefix)), 5.0)


def _python_part(home: Home, role: str, module: str, settings: Mapping[str, Any]) -> Part:
    # -P: the folder that `up` was called from must never shadow an installed package.
    argv = (sys.executable, "-P", "-m", module, "--config", str(home.config_file(role)))
    return Part(role, argv, settings)

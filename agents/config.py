"""What does one agent need to know to start? Read from a JSON file, checked, never changed after.

It must never hold the data-plane secret itself: only the path of the file it stands in.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..core.errors import ProtocolError, UsageError
from ..core.records import DeviceRecord, from_plain
from ..core.store.security import EtcdSecurity


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """The node as declared: `devices` say how much HBM each may hold."""

    name: str
    address: str  # IPv4 that other nodes reach this one by
    devices: tuple[DeviceRecord, ...]


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """The file given by `--config`: these names, JSON, nothing else."""

    node: NodeConfig
    cluster: str
    etcd: tuple[str, ...]  # "host:port" of each endpoint
    node_dir: str  # sockets, run files and logs of this node; made 0700
    secret_file: str  # hex secret of the data plane
    instance: str = ""  # MOECTL_INSTANCE of every child
    lease_ttl_s: float = 5.0
    siblings: tuple[str, ...] = ()  # folders beside node_dir: nodes of the same machine and user
    etcd_security: EtcdSecurity = field(default_factory=EtcdSecurity)

    def __post_init__(self) -> None:
        if not self.etcd:
            raise UsageError("agent config: etcd lists no endpoint")
        if not self.node.devices:
            raise UsageError(f"agent config: node {self.node.name} declares no device")
        if self.lease_ttl_s < 1:
            raise UsageError(f"agent config: lease_ttl_s {self.lease_ttl_s} is below 1 second")


def load_agent_config(path: Path) -> AgentConfig:
    """Read the file; raises UsageError naming the file and the field."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"agent config {path}: {error}") from error
    return agent_config_from_plain(data, str(path))


def agent_config_from_plain(data: Any, where: str = "agent config") -> AgentConfig:
    """Build from plain data; raises UsageError on an unknown, missing or mistyped field."""
    try:
        return from_plain(AgentConfig, data)
    except ProtocolError as error:
        raise UsageError(f"{where}: {error.message}") from error

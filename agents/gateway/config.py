"""What does one gateway need to know to start? Read from a JSON file, checked, never changed after.

It must never hold the data-plane secret itself: only the path of the file it stands in.
"""

import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ...core.errors import ProtocolError, UsageError
from ...core.records import from_plain
from ...core.store.security import EtcdSecurity


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    """The file given by `--config`: these names, JSON, nothing else.

    Limits: each bounds memory that a client could otherwise make us hold.
    """

    cluster: str
    etcd: tuple[str, ...]  # "host:port" of each endpoint
    secret_file: str  # hex secret of the data plane
    instance: str = ""
    host: str = "127.0.0.1"
    port: int = 8000
    body_bytes_max: int = 4 << 20  # a 1 M token prompt is about this much text
    inflight_max: int = 1024  # requests held at once, all models together
    inflight_per_token_max: int = 512  # requests held at once for one bearer token
    requests_per_minute_max: int = 0  # for one bearer token; 0: no such limit
    inflight_per_tenant_max: int = 0  # held at once for all tokens of a tenant; 0: no such limit
    requests_per_minute_per_tenant_max: int = 0  # for all tokens of a tenant; 0: no such limit
    buffered_tokens_max: int = 2048  # per request, between worker and a slow reader
    choices_max: int = 16  # prompts x n of one request
    stall_s: float = 60.0  # a reader that takes nothing for this long is dropped
    heartbeat_s: float = 1.0  # between two pings to a worker
    heartbeats_missed_max: int = 5  # silent for so many: its requests go elsewhere
    etcd_security: EtcdSecurity = field(default_factory=EtcdSecurity)

    def __post_init__(self) -> None:
        if not self.etcd:
            raise UsageError("gateway config: etcd lists no endpoint")
        if not 0 <= self.port <= 65535:
            raise UsageError(f"gateway config: port {self.port} is outside 0..65535")


def load_gateway_config(path: Path) -> GatewayConfig:
    """Read the file; raises UsageError naming the file and the field."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"gateway config {path}: {error}") from error
    return gateway_config_from_plain(data, str(path))


def gateway_config_from_plain(data: Any, where: str = "gateway config") -> GatewayConfig:
    """Build from plain data; raises UsageError on an unknown or missing field."""
    if not isinstance(data, dict):
        raise UsageError(f"{where}: expected an object")
    known = {f.name for f in fields(GatewayConfig)}
    unknown = sorted(set(data) - known)
    missing = sorted({"cluster", "etcd", "secret_file"} - set(data))
    if unknown or missing:
        raise UsageError(f"{where}: unknown fields {unknown}, missing fields {missing}")
    try:
        security = from_plain(EtcdSecurity, data.get("etcd_security", {}))
    except ProtocolError as error:
        raise UsageError(f"{where}: {error.message}") from error
    return GatewayConfig(**{**data, "etcd": tuple(data["etcd"]), "etcd_security": security})

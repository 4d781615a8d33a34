"""What does a controller process need to know to start, and which limits bound its decisions?

`Limits` are the numbers of the pure reconcile code, each with its reason. `ServerConfig` is the
JSON file given by `--config`: these names, nothing else. It never holds a token, only its digest.
"""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

from ..core.errors import ProtocolError, UsageError
from ..core.records import from_plain
from ..core.store.security import EtcdSecurity

DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Limits:
    """Deadlines, graces and counts of the reconcile loop. All times are seconds."""

    prepare_s: float = 60.0  # copying tens of GB at 1 GB/s between nodes, beside service
    commit_s: float = 30.0  # one agreed step; a prefill chunk can hold it up for seconds
    retire_s: float = 60.0  # pages are unmapped off the critical path
    forfeit_s: float = 30.0  # giving back what PREPARE reserved
    broken_s: float = 5.0  # a phase whose group has lost a worker is not waited for any longer
    parked_grace_s: float = 1.0  # the report of the death that parked the others is on its way
    split_grace_s: float = 7.0  # some parked, some not: past the lease of a node that died silently
    missing_grace_s: float = 5.0  # an agent that restarts reports its workers again within this
    node_grace_s: float = 10.0  # workers outlive their agent: give the next one time to adopt them
    attempts_max: int = 3  # of one change; more would hide a fault behind activity
    heal_rest_s: float = 60.0  # after the last attempt in a row, before healing starts over
    auto_wait_s: float = 30.0  # for declared nodes to come up, before a new model does without
    auto_settle_s: float = 20.0  # a node that stays this long is worth growing onto
    auto_rest_s: float = 60.0  # after a change that the planner made, before the next
    auto_retry_s: float = 300.0  # the same after one that failed: nobody asked for it by hand
    transitions_kept: int = 50  # finished ones per model: the history that people look at
    keys_pruned_max: int = 60  # per change, under the store's 128 operations a transaction
    record_bytes_max: int = 900_000  # under the store's 1 MiB a value, with room for figures


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """The settings file of a controller process."""

    cluster: str
    etcd: tuple[str, ...]  # "host:port" of each endpoint
    host: str
    port: int
    admin_token_digest: str  # SHA-256 of the admin's bearer token, hex
    instance: str = ""  # MOECTL_INSTANCE of an embedded fleet
    lease_ttl_s: float = 5.0  # how long a dead leader blocks the next
    etcd_security: EtcdSecurity = field(default_factory=EtcdSecurity)
    tls_cert_file: str = ""  # PEM of the API's own certificate; empty: plain HTTP
    tls_key_file: str = ""
    audit_file: str = ""  # every write, one JSON line each; empty: the log only

    def __post_init__(self) -> None:
        if not self.etcd:
            raise UsageError("controller config: etcd lists no endpoint")
        if not 0 <= self.port <= 65535:
            raise UsageError(f"controller config: port {self.port} is not a port")
        if not DIGEST.fullmatch(self.admin_token_digest):
            raise UsageError("controller config: admin_token_digest is not a SHA-256 in hex")
        if bool(self.tls_cert_file) != bool(self.tls_key_file):
            raise UsageError("controller config: tls_cert_file and tls_key_file belong together")
        if self.lease_ttl_s < 1:
            raise UsageError(f"controller config: lease_ttl_s {self.lease_ttl_s} is below 1")


def load_server_config(path: Path) -> ServerConfig:
    """Read the file; raises UsageError naming the file and the field."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"controller config {path}: {error}") from error
    try:
        return from_plain(ServerConfig, data)
    except ProtocolError as error:
        raise UsageError(f"controller config {path}: {error.message}") from error

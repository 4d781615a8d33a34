"""What does a worker need to know to start? Plain data that the agent sends to the fork server.

Standard library only: agent, fork server, worker and tests share it. No secret is in here, only the
path of the file that holds it.
"""

import json
from dataclasses import asdict, dataclass, fields
from typing import Any

from ...core.errors import ProtocolError


@dataclass(frozen=True, slots=True)
class WorkerLaunch:
    """One worker to be: the process that fills a rank of a model on a device."""

    model: str
    node: str
    device: str
    instance: int  # how often this rank was started anew; see core.plan.Placement
    node_address: str  # process groups between nodes leave from this address
    hmm_socket: str
    control_socket: str  # the worker listens here for its agent
    data_host: str  # the worker listens here, on a port of its own, for gateways
    secret_file: str  # holds the secret that gateways must show
    model_folder: str
    model_spec: dict[str, Any]
    log_path: str
    is_gentle: bool = False  # gives way until it serves: others do
    transition: str = ""  # what it is started for, as JSON: it prepares for that unasked

    def to_plain(self) -> dict[str, Any]:
        """As JSON-safe data."""
        return asdict(self)

    @classmethod
    def from_plain(cls, plain: Any) -> "WorkerLaunch":
        """The inverse of `to_plain`; ProtocolError names fields that are missing or unknown."""
        names = {field.name for field in fields(cls)}
        if not isinstance(plain, dict) or set(plain) != names:
            given = set(plain) if isinstance(plain, dict) else set()
            raise ProtocolError(
                f"a worker's orders lack {sorted(names - given)}, and have {sorted(given - names)} "
                "that nobody knows"
            )
        return cls(**plain)

    @classmethod
    def from_json(cls, text: str) -> "WorkerLaunch":
        """From JSON text."""
        return cls.from_plain(json.loads(text))

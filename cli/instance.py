"""Which embedded fleet lives in this home, and how is it reached? The content of `instance.json`.

Read by every command; written only by `up`. The token stands in its own private file.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import MoectlError, RefusedError
from ..core.paths import Home, write_private
from .ports import LOOPBACK, Ports

if TYPE_CHECKING:
    from .client import ApiClient


@dataclass(frozen=True, slots=True)
class Instance:
    """An embedded fleet as written down when it was made."""

    instance: str
    created_at: float
    spec_path: str
    cluster: str
    spec: dict[str, Any]  # the Cluster spec, canonical: tells whether another `up` means the same
    ports: Ports

    @property
    def api_url(self) -> str:
        """Where the controller answers."""
        return f"http://{LOOPBACK}:{self.ports.api}"

    @property
    def gateway_url(self) -> str:
        """Where the OpenAI-compatible front door answers."""
        return f"http://{LOOPBACK}:{self.ports.gateway}"

    @property
    def etcd_endpoint(self) -> str:
        """host:port of etcd's client port."""
        return f"{LOOPBACK}:{self.ports.etcd_client}"

    @property
    def nodes(self) -> list[dict[str, Any]]:
        """The declared nodes."""
        return list(self.spec["nodes"])


def save_instance(home: Home, instance: Instance) -> None:
    """Write `instance.json`."""
    write_private(home.instance_file, json.dumps(asdict(instance), indent=1) + "\n")


def load_instance(home: Home) -> Instance | None:
    """The instance of this home, or None; raises RefusedError on a file of another version."""
    data = home.read_instance()
    if data is None:
        return None
    try:
        return Instance(**{**data, "ports": Ports(**data["ports"])})
    except (KeyError, TypeError) as error:
        raise RefusedError(
            f"{home.instance_file} was written by another version of moectl: {error}",
            next_step="end that fleet with `moectl down`",
        ) from error


def require_instance(home: Home) -> Instance:
    """The instance of this home; raises MoectlError when no fleet was brought up here."""
    instance = load_instance(home)
    if instance is None:
        raise MoectlError(
            f"no fleet is running here ({home.root} holds no instance)",
            next_step="start one with `moectl up`, or set MOECTL_HOME to the fleet's directory",
        )
    return instance


def read_token(home: Home) -> str:
    """The admin's bearer token."""
    try:
        return home.token_file.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise MoectlError(
            f"the token of this fleet cannot be read: {error}",
            next_step="run as the user that ran `moectl up`, or bring the fleet up again",
        ) from error


def connect(home: Home | None = None, deadline_s: float | None = None) -> "ApiClient":
    """A client for the controller of the context in force: of this home's fleet by default."""
    from . import contexts
    from .client import CALL_DEADLINE_S, ApiClient

    where, deadline_s = home or Home.from_environment(), deadline_s or CALL_DEADLINE_S
    context = contexts.chosen(where)
    if context is not None:
        token = contexts.read_token_file(Path(context.token_file))
        name, ca = contexts.name_in_force(where), context.ca_file
        return ApiClient(context.api, token, deadline_s=deadline_s, ca_file=ca, context=name)
    instance = require_instance(where)
    return ApiClient(instance.api_url, read_token(where), deadline_s=deadline_s)


def gateway_of(home: Home) -> tuple[str, str, str]:
    """URL, token and CA file ("": the system's) of the front door of the context in force."""
    from . import contexts

    context = contexts.chosen(home)
    if context is None:
        return require_instance(home).gateway_url, read_token(home), ""
    token = contexts.read_token_file(Path(context.token_file))
    url = context.gateway
    if not url:
        with connect(home) as client:
            url = client.fleet().endpoints.get("gateway", "")
    if not url:
        raise MoectlError(
            "this fleet names no gateway", next_step="`moectl context add` takes --gateway URL"
        )
    return url, token, context.ca_file


def spec_matches(instance: Instance, cluster: str, spec: dict[str, Any]) -> bool:
    """Whether a Cluster spec is the one that the instance runs."""
    return instance.cluster == cluster and instance.spec == json.loads(json.dumps(spec))


def log_hint(home: Home, role: str) -> str:
    """Where to look when a part did not start."""
    return f"read {Path(home.log_file(role))}"

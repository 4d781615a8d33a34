"""How does a whole embedded fleet come up on this machine, and what if something goes wrong on the
way?

The order: etcd, then controller, gateway and agents together, then the specs, then the models. All
or nothing: on a failure or Ctrl-C whatever this command started is ended again (logs are kept). A
second `up` on a running fleet changes nothing; on a half-dead one it starts what is missing.
"""

import json
import secrets
import shutil
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..core.errors import ConflictError, MoectlError
from ..core.paths import Home, end_process, remove_run_file, write_private
from . import parts, readiness, specs, waiting
from .client import ApiClient
from .fleet_view import ModelView
from .home_lock import home_lock
from .instance import Instance, load_instance, read_token, save_instance, spec_matches
from .interrupts import interruptible, shielded
from .launch import Started, running_process, start_part
from .ports import FLAGS, Ports, choose_ports
from .progress import Progress
from .teardown import tear_down

if TYPE_CHECKING:
    from ..core.spec import Document

READY_DEADLINE_S = 120.0  # first torch import on a slow disk takes half a minute


@dataclass(frozen=True, slots=True, kw_only=True)
class UpOptions:
    """What `up` was asked for; a port of None means the default, 0 any free one."""

    spec: str = specs.DEFAULT_SPEC
    api_port: int | None = None
    gateway_port: int | None = None
    etcd_port: int | None = None
    with_models: bool = True
    deadline_s: float = READY_DEADLINE_S


@dataclass(frozen=True, slots=True)
class UpResult:
    """The fleet that runs now; `started` names the parts that this call started."""

    instance: Instance
    started: tuple[str, ...]
    models: tuple[str, ...]


def bring_up(home: Home, options: UpOptions, progress: Progress) -> UpResult:
    """Bring the fleet of a spec up, or find it running; an error leaves everything undone."""
    documents = specs.read_documents(options.spec)
    cluster = specs.only_cluster(documents, options.spec)
    requests = specs.to_request(documents, specs.folder_of(options.spec))
    with interruptible(), home_lock(home):
        existing = load_instance(home)
        if existing is not None:
            _refuse_another(existing, cluster, options)
        else:
            _clear_remains(home)
        instance = existing or _create_instance(home, cluster, options)
        attempt = _Attempt(home, instance, progress, time.monotonic() + options.deadline_s)
        try:
            return attempt.run(requests, fresh=existing is None, with_models=options.with_models)
        except BaseException:
            with shielded():
                attempt.roll_back(fresh=existing is None)
            raise


class _Attempt:
    """One run of `up`: what it has started so far, and how to undo it."""

    def __init__(self, home: Home, instance: Instance, progress: Progress, end_s: float) -> None:
        self._home = home
        self._instance = instance
        self._progress = progress
        self._end_s = end_s
        self._started: list[Started] = []

    def run(self, requests: list[dict[str, object]], *, fresh: bool, with_models: bool) -> UpResult:
        """Start what is missing, declare what is new, wait for all of it."""
        home, instance = self._home, self._instance
        self._start([self._etcd_part()])
        token = read_token(home)
        agents = [parts.agent_part(home, instance, node) for node in instance.nodes]
        self._start(
            [
                parts.controller_part(home, instance, token),
                *agents,
                parts.gateway_part(home, instance),
            ]
        )
        with ApiClient(instance.api_url, token) as client:
            self._declare(client, requests, fresh=fresh, with_models=with_models)
            names = (
                [str(r["name"]) for r in requests if r["kind"] == "Model"] if with_models else []
            )
            for name in names:
                self._progress.start(f"model {name}")
            if names:
                left_s = max(1.0, self._end_s - time.monotonic())
                waiting.wait_models_ready(client, names, left_s, self._tell_model)
            for name in names:
                self._progress.end(f"model {name}", "ok", "Ready")
        started = tuple(part.part.role for part in self._started)
        return UpResult(instance, started, tuple(names))

    def roll_back(self, *, fresh: bool) -> None:
        """End what this call started; for a new instance, all of it."""
        if fresh:
            self._progress.start("roll back")
            tear_down(self._home, keep_logs=True, report=lambda role, outcome: None)
            self._progress.end("roll back", "ok", f"logs are kept in {self._home.logs_dir}")
            return
        for started in reversed(self._started):
            end_process(started.process, parts.grace_s(started.part.role))
            remove_run_file(self._home.run_dir, started.part.role)

    def _etcd_part(self) -> parts.Part:
        from ..core.store.embedded import EmbeddedEtcd

        ports = self._instance.ports
        etcd = EmbeddedEtcd(
            self._home.etcd_dir, ports.etcd_client, ports.etcd_peer, self._home.log_file("etcd")
        )
        return parts.Part("etcd", tuple(etcd.argv()))

    def _start(self, wanted: Sequence[parts.Part]) -> None:
        """Start those that do not run, then wait until every one of them answers."""
        waiting_for: list[tuple[parts.Part, Started | None]] = []
        for part in wanted:
            process = running_process(self._home, part.role)
            self._progress.start(part.role)
            started = None
            if process is None:
                started = start_part(self._home, self._instance, part)
                self._started.append(started)
            waiting_for.append((part, started))
        for part, started in waiting_for:
            left_s = max(1.0, self._end_s - time.monotonic())
            readiness.wait_part(self._home, self._instance, part, started, left_s)
            self._progress.end(part.role, "ok", "" if started else "was running")

    def _declare(
        self,
        client: ApiClient,
        requests: list[dict[str, object]],
        *,
        fresh: bool,
        with_models: bool,
    ) -> None:
        """Apply the documents; on a repair only missing ones: a scale must not be undone."""
        wanted = [r for r in requests if with_models or r["kind"] == "Cluster"]
        if not fresh:
            known = {model.name for model in client.fleet().models}
            wanted = [r for r in wanted if r["kind"] == "Model" and r["name"] not in known]
        if wanted:
            client.apply(wanted, operation_id=f"up-{uuid.uuid4().hex[:12]}", dry_run=False)

    def _tell_model(self, model: ModelView) -> None:
        if model.is_whole:
            return
        active = model.active
        detail = f"{active.kind} {active.phase}" if active else "waiting for its workers"
        self._progress.start(f"model {model.name}", detail)


def _refuse_another(existing: Instance, cluster: "Document", options: UpOptions) -> None:
    """Raise ConflictError when another spec or other ports are asked for than run here."""
    from ..core.spec import to_plain

    if not spec_matches(existing, cluster.name, to_plain(cluster.spec)):
        raise ConflictError(
            f"a fleet of another spec runs here: {existing.cluster} from {existing.spec_path}",
            next_step="end it with `moectl down`, or set MOECTL_HOME for a second fleet",
        )
    asked = {
        "api": options.api_port,
        "gateway": options.gateway_port,
        "etcd_client": options.etcd_port,
    }
    for name, port in asked.items():
        current = getattr(existing.ports, name)
        if port and port != current:
            raise ConflictError(
                f"{FLAGS[name]} {port}: this fleet runs with {current}",
                next_step="end it with `moectl down` to change its ports",
            )


def _create_instance(home: Home, cluster: "Document", options: UpOptions) -> Instance:
    """Write down a new instance with its ports, token and data-plane secret."""
    from ..core.spec import to_plain

    default = Ports()
    ports = choose_ports(
        default.api if options.api_port is None else options.api_port,
        default.gateway if options.gateway_port is None else options.gateway_port,
        default.etcd_client if options.etcd_port is None else options.etcd_port,
    )
    home.create()
    write_private(home.token_file, secrets.token_urlsafe(32) + "\n")
    write_private(home.internal_key_file, secrets.token_hex(32) + "\n")
    instance = Instance(
        instance=uuid.uuid4().hex[:16],
        created_at=time.time(),
        spec_path=str(specs.find_spec(options.spec))
        if options.spec != specs.STDIN
        else specs.STDIN,
        cluster=cluster.name,
        spec=json.loads(json.dumps(to_plain(cluster.spec))),
        ports=ports,
    )
    save_instance(home, instance)
    return instance


def _clear_remains(home: Home) -> None:
    """End what an interrupted `up` left running, and forget its logs: they would be misread."""
    # The home itself must stay: the lock that we hold is on it.
    result = tear_down(home, keep_logs=True, report=lambda role, outcome: None)
    for folder in (home.logs_dir, home.nodes_dir):
        shutil.rmtree(folder, ignore_errors=True)
    if result.survivors:
        pids = ", ".join(str(pid) for pid in result.survivors)
        raise MoectlError(
            f"processes of an earlier fleet in {home.root} cannot be ended: {pids}",
            next_step="end them as the user that owns them, then try again",
        )

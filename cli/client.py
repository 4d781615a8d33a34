"""How does the CLI talk to the controller? One small synchronous HTTP client over the API.

The only file of `cli` that knows httpx for the API (the gateway has its own client in `demo`).
Every call has a deadline; foreign errors become ours here. The token is sent and never printed.
"""

import json
import ssl
import time
from collections.abc import Iterator
from typing import Any

import httpx

from ..core.errors import MoectlError, RefusedError
from ..core.plan import Pace
from . import sse
from .exit_codes import error_from_body
from .fleet_view import FleetView, fleet_from_plain

CALL_DEADLINE_S = 15.0  # the API answers in milliseconds; admission of a large plan takes seconds
RECONNECT_S = 0.5  # between attempts to take a broken stream up again
RECONNECTS_MAX = 120  # in a row: a minute without the controller
SILENCE_MAX_S = 30.0  # the watch sends heartbeats far more often


class ApiClient:
    """Calls of `/v1` as methods; use as a context manager."""

    def __init__(
        self,
        base_url: str,
        token: str,
        *,
        deadline_s: float = CALL_DEADLINE_S,
        ca_file: str = "",
        context: str = "",
    ) -> None:
        self._base_url = base_url
        self._context = context  # "": the fleet of this home
        trust = trust_of(ca_file) if ca_file else True
        self._http = httpx.Client(
            base_url=base_url,
            headers={"Authorization": f"Bearer {token}"},
            timeout=deadline_s,
            verify=trust,
            trust_env=False,  # a proxy must never see the fleet's token
        )

    def __enter__(self) -> "ApiClient":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def get(self, path: str, **params: Any) -> Any:
        """GET /v1/PATH as decoded JSON."""
        return self._call("GET", path, params={k: v for k, v in params.items() if v is not None})

    def post(self, path: str, body: Any) -> Any:
        """POST a JSON body to /v1/PATH."""
        return self._call("POST", path, json=body)

    def delete(self, path: str, **params: Any) -> Any:
        """DELETE /v1/PATH."""
        return self._call("DELETE", path, params=params)

    def fleet(self) -> FleetView:
        """One snapshot of everything."""
        return fleet_from_plain(self.get("fleet"))

    def apply(self, documents: list[dict[str, Any]], *, operation_id: str, dry_run: bool) -> Any:
        """Declare documents; all of their mistakes come back at once."""
        body = {"documents": documents, "operation_id": operation_id, "dry_run": dry_run}
        return self.post("apply", body)

    def scale(
        self,
        model: str,
        experts: str,
        *,
        operation_id: str,
        dry_run: bool,
        take: bool = False,
        pace: Pace = Pace.GENTLE,
    ) -> Any:
        """Ask for another expert width: "8", "+2" or "-1"; `take` it from gitops if need be."""
        body = {"experts": experts, "operation_id": operation_id, "dry_run": dry_run, "take": take}
        body |= {"pace": pace}
        return self.post(f"models/{model}/scale", body)

    def watch(self) -> Iterator[FleetView]:
        """Snapshots as they change, without an end; raises MoectlError when it breaks off."""
        try:
            for event in self._stream("watch"):
                if event.name == "fleet":
                    yield fleet_from_plain(json.loads(event.data))
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error

    def watch_transition(self, operation_id: str, seconds: float) -> Iterator[dict[str, Any]]:
        """One operation as it changes, until it is final or the time is over.

        Raises MoectlError when it breaks off, RefusedError when the operation is unknown.
        """
        path = f"transitions/{operation_id}/watch"
        silence_s = min(SILENCE_MAX_S, seconds + CALL_DEADLINE_S)
        try:
            for event in self._stream(path, silence_s, params={"seconds": seconds}):
                yield json.loads(event.data)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error

    def watch_events(self, subject: str | None = None) -> Iterator[dict[str, Any]]:
        """The event log and what follows, over broken connections: none lost, none twice."""
        last_id, tries = "", 0
        while True:
            try:
                for event in self._stream_events(subject, last_id):
                    last_id, tries = str(event["id"]), 0
                    yield event
            except httpx.HTTPError as error:
                tries += 1
                if tries > RECONNECTS_MAX:
                    raise self._unreachable(error) from error
            time.sleep(RECONNECT_S)

    def _stream_events(self, subject: str | None, last_id: str) -> Iterator[dict[str, Any]]:
        headers = {"Last-Event-ID": last_id} if last_id else {}
        params = {"subject": subject} if subject else {}
        for event in self._stream("events/watch", headers=headers, params=params):
            yield json.loads(event.data)

    def _stream(
        self, path: str, silence_s: float = SILENCE_MAX_S, **arguments: Any
    ) -> Iterator[sse.Event]:
        """Server-sent events of GET /v1/PATH; lets errors of the connection through."""
        timeout = httpx.Timeout(CALL_DEADLINE_S, read=silence_s)
        with self._http.stream("GET", f"/v1/{path}", timeout=timeout, **arguments) as answer:
            if answer.status_code >= 400:
                answer.read()
                raise self._refusal(answer, "GET", path)
            yield from sse.events(answer.iter_lines())

    def _call(self, method: str, path: str, **arguments: Any) -> Any:
        try:
            answer = self._http.request(method, f"/v1/{path}", **arguments)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        if answer.status_code >= 400:
            raise self._refusal(answer, method, path)
        return answer.json() if answer.content else None

    def _refusal(self, answer: httpx.Response, method: str, path: str) -> MoectlError:
        try:
            body = answer.json()
        except ValueError:
            body = None
        return error_from_body(answer.status_code, body, f"{method} {self._base_url}/v1/{path}")

    def _unreachable(self, error: httpx.HTTPError) -> MoectlError:
        why = str(error) or type(error).__name__
        hint = "`moectl status` shows what is down and what was seen last; `moectl up` starts it"
        if "CERTIFICATE_VERIFY_FAILED" in why:
            hint = "`moectl context add` takes --ca-file, the PEM of the authority of the API"
        elif self._context:
            hint = f"context {self._context}: check its address with `moectl context list`"
        return MoectlError(
            f"the controller at {self._base_url} does not answer: {why}", next_step=hint
        )


def trust_of(ca_file: str) -> ssl.SSLContext:
    """Trust the authority of a PEM file and no other; RefusedError when it cannot be read."""
    try:
        return ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        raise RefusedError(
            f"the CA file {ca_file} cannot be used: {error.strerror or error}",
            next_step="`moectl context add` names another file: a PEM with certificates",
        ) from error

"""How does a person's terminal talk to the OpenAI-compatible gateway? A small streaming chat
client.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from ..core.errors import AuthError, MoectlError, RefusedError, UsageError
from . import sse
from .client import trust_of

CONNECT_DEADLINE_S = 5.0
SILENCE_MAX_S = 90.0  # longer than the longest replay deadline that a model has by default


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatOptions:
    """How an answer is drawn; the same seed draws the same answer."""

    max_tokens: int = 200
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None

    def to_plain(self) -> dict[str, Any]:
        """As fields of a request."""
        plain: dict[str, Any] = {
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
        }
        return plain if self.seed is None else plain | {"seed": self.seed}


def chat_body(
    model: str, messages: Sequence[dict[str, str]], options: ChatOptions
) -> dict[str, Any]:
    """A streaming chat request whose last chunk tells its usage."""
    return {
        "model": model,
        "messages": list(messages),
        "stream": True,
        "stream_options": {"include_usage": True},
        **options.to_plain(),
    }


def piece_of(data: str) -> tuple[str, dict[str, Any] | None]:
    """The text of one chunk and the chunk when it carries usage; raises MoectlError on an error."""
    chunk = json.loads(data)
    if "error" in chunk:
        raise gateway_error(500, chunk)
    text = "".join(choice.get("delta", {}).get("content") or "" for choice in chunk["choices"])
    return text, chunk if chunk.get("usage") else None


def gateway_error(status: int, body: Any) -> MoectlError:
    """An error in OpenAI's form as ours."""
    detail = body.get("error") if isinstance(body, dict) else None
    message = detail.get("message") if isinstance(detail, dict) else None
    text = f"the gateway answered {status}: {message or 'no reason given'}"
    if status in (401, 403):
        return AuthError(text, next_step="use the token of this fleet ($MOECTL_HOME/token)")
    if status in (400, 404, 422):
        return RefusedError(text, next_step="`moectl get models` lists what is served")
    return MoectlError(text, next_step="`moectl status` shows whether the model is Ready")


class GatewayClient:
    """Chat over `/v1/chat/completions`; use as a context manager."""

    def __init__(self, base_url: str, token: str, *, ca_file: str = "") -> None:
        self._base_url = base_url
        trust = trust_of(ca_file) if ca_file else True
        self._http = httpx.Client(
            base_url=base_url,
            headers={"Authorization": f"Bearer {token}"},
            timeout=httpx.Timeout(SILENCE_MAX_S, connect=CONNECT_DEADLINE_S),
            verify=trust,
            trust_env=False,
        )

    def __enter__(self) -> "GatewayClient":
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def models(self) -> list[str]:
        """Names of the models that are served."""
        try:
            answer = self._http.get("/v1/models")
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        if answer.status_code >= 400:
            raise gateway_error(answer.status_code, _json_or_none(answer))
        return [str(item["id"]) for item in answer.json()["data"]]

    def only_model(self) -> str:
        """The one served model; raises UsageError when there is another number of them."""
        names = self.models()
        if len(names) != 1:
            raise UsageError(
                f"{len(names)} models are served: {', '.join(names) or 'none'}",
                next_step="name one: moectl chat MODEL" if names else "moectl apply -f FILE",
            )
        return names[0]

    def stream_chat(
        self, model: str, messages: Sequence[dict[str, str]], options: ChatOptions
    ) -> Iterator[str]:
        """Pieces of the answer as they arrive."""
        body = chat_body(model, messages, options)
        try:
            with self._http.stream("POST", "/v1/chat/completions", json=body) as answer:
                if answer.status_code >= 400:
                    answer.read()
                    raise gateway_error(answer.status_code, _json_or_none(answer))
                for event in sse.events(answer.iter_lines()):
                    if event.data == "[DONE]":
                        return
                    yield piece_of(event.data)[0]
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: httpx.HTTPError) -> MoectlError:
        why = str(error) or type(error).__name__
        return MoectlError(
            f"the gateway at {self._base_url} does not answer: {why}",
            next_step="`moectl status` shows what is down; `moectl up` starts what is missing",
        )


def _json_or_none(answer: httpx.Response) -> Any:
    try:
        return answer.json()
    except ValueError:
        return None

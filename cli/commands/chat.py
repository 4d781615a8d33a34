"""`moectl chat`: talk to a model of the fleet."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ..gateway_client import ChatOptions, GatewayClient


def chat(
    model: Annotated[
        str | None, typer.Argument(help="Name of the model; the only one when left out.")
    ] = None,
    message: Annotated[
        str | None, typer.Option("--message", "-m", help="Say this, print the answer, end.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer in tokens.")] = 200,
    temperature: Annotated[
        float, typer.Option(min=0, max=2, help="0 = always the likeliest token.")
    ] = 0.6,
    top_p: Annotated[
        float, typer.Option(min=0.01, max=1, help="Draw from the likeliest tokens of this share.")
    ] = 0.9,
    seed: Annotated[int | None, typer.Option(help="Seed for temperatures above 0.")] = None,
) -> None:
    """Talk to a model; answers stream to stdout.

    Without --message it asks for lines until Ctrl-D. The demo model only knows Python: describe a
    function and it writes something that looks like one.

    \b
    Examples:
      moectl chat
      moectl chat -m "read a file and count its lines"
      moectl chat chat -m "sort a list of names" --seed 1
    """
    from ...core.paths import Home
    from ..gateway_client import ChatOptions, GatewayClient
    from ..instance import gateway_of

    url, token, ca_file = gateway_of(Home.from_environment())
    options = ChatOptions(max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed)
    with GatewayClient(url, token, ca_file=ca_file) as client:
        name = model or client.only_model()
        history: list[dict[str, str]] = []
        if message is not None:
            _turn(client, name, history, message, options)
            return
        _talk(client, name, history, options)


def _talk(
    client: "GatewayClient", model: str, history: list[dict[str, str]], options: "ChatOptions"
) -> None:
    """Turns until the end of input."""
    is_terminal = sys.stdin.isatty()
    while True:
        if is_terminal:
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            _turn(client, model, history, line.strip(), options)


def _turn(
    client: "GatewayClient",
    model: str,
    history: list[dict[str, str]],
    text: str,
    options: "ChatOptions",
) -> None:
    """One question and its streamed answer; both join the history."""
    history.append({"role": "user", "content": text})
    answer = ""
    for piece in client.stream_chat(model, history, options):
        answer += piece
        print(piece, end="", flush=True)
    print()
    history.append({"role": "assistant", "content": answer})

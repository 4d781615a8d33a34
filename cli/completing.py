"""What could stand here? Names for shell completion, asked of the fleet and never an error.

Whoever presses Tab waits: the fleet has a second to answer, and then there is nothing to offer.
"""

from collections.abc import Callable

WAIT_S = 1.0


def complete_context(incomplete: str) -> list[str]:
    """Names of contexts."""
    from ..core.errors import MoectlError
    from ..core.paths import Home
    from . import contexts

    try:
        names = [contexts.LOCAL, *contexts.load(Home.from_environment()).known]
    except MoectlError:
        return []
    return _starting(names, incomplete)


def complete_model(incomplete: str) -> list[str]:
    """Names of models; nothing when the fleet does not answer."""
    return _asked("models", incomplete)


def complete_token(incomplete: str) -> list[str]:
    """Names of tokens, for admins."""
    return _asked("tokens", incomplete)


def one_of(*words: str) -> Callable[[str], list[str]]:
    """A completer over fixed words."""
    return lambda incomplete: _starting(list(words), incomplete)


def _asked(path: str, incomplete: str) -> list[str]:
    from ..core.errors import MoectlError
    from .instance import connect

    try:
        with connect(deadline_s=WAIT_S) as client:
            return _starting([str(item["name"]) for item in client.get(path)], incomplete)
    except MoectlError:
        return []


def _starting(names: list[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]

"""Which fleet do commands talk to? The one brought up in this home, or one named in a context.

A context names an API and the *file* that its token stands in: this file holds no secret and may
be shared. `local` always means the embedded fleet of this home. `MOECTL_CONTEXT` chooses for one
command, `moectl context use` for all that follow, and `--context` before both.
"""

import json
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from ..core.errors import RefusedError, UsageError
from ..core.paths import Home, write_private

LOCAL = "local"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
VARIABLE = "MOECTL_CONTEXT"


@dataclass(frozen=True, slots=True)
class Context:
    """One fleet that can be reached."""

    api: str  # URL
    token_file: str
    ca_file: str = ""  # PEM; empty: the system's authorities
    gateway: str = ""  # URL of the front door; empty: the one that the fleet names


@dataclass(frozen=True, slots=True)
class Contexts:
    """All contexts of a home, and the one in force."""

    current: str
    known: dict[str, Context]


def check_name(name: str) -> str:
    """A name that can be added; raises UsageError."""
    if name == LOCAL:
        raise UsageError("`local` is the fleet of this home", next_step="use another name")
    if not NAME.fullmatch(name):
        raise UsageError(
            f"context {name!r}: not a name",
            next_step="use 1 to 63 letters, digits, '.', '_' or '-'",
        )
    return name


def load(home: Home) -> Contexts:
    """The contexts of a home; raises RefusedError when the file cannot be read."""
    path = file_of(home)
    if not path.exists():
        return Contexts(LOCAL, {})
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        known = {name: Context(**value) for name, value in data["contexts"].items()}
        return Contexts(str(data["current"]), known)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RefusedError(
            f"{path} cannot be read: {error}", next_step=f"mend or remove {path}"
        ) from error


def save(home: Home, contexts: Contexts) -> None:
    """Write the contexts."""
    home.root.mkdir(mode=0o700, parents=True, exist_ok=True)
    data = {"current": contexts.current, "contexts": {}}
    data["contexts"] = {name: asdict(context) for name, context in contexts.known.items()}
    write_private(file_of(home), json.dumps(data, indent=1) + "\n")


def file_of(home: Home) -> Path:
    """Where the contexts of a home stand."""
    return home.root / "contexts.json"


def choose(name: str) -> None:
    """Take the `--context` of this command line; "" leaves what was chosen before.

    It goes into the environment of this process, so that what it starts means the same fleet.
    """
    if name:
        os.environ[VARIABLE] = name


def named() -> str:
    """The context that the command line or the environment names, or ""."""
    return os.environ.get(VARIABLE, "")


def name_in_force(home: Home) -> str:
    """The name of the context that commands use: of the flag, the environment, or the file."""
    return named() or load(home).current


def chosen(home: Home) -> Context | None:
    """The context in force, or None for the embedded fleet. Raises UsageError on another name."""
    contexts = load(home)
    name = name_in_force(home)
    if name == LOCAL:
        return None
    if name not in contexts.known:
        names = ", ".join([LOCAL, *sorted(contexts.known)])
        raise UsageError(f"no context named {name!r}", next_step=f"use one of: {names}")
    return contexts.known[name]


def read_token_file(path: Path) -> str:
    """A token from its file. Raises RefusedError when others can read it."""
    try:
        if path.stat().st_mode & 0o077:
            raise RefusedError(f"{path}: others can read this token", next_step=f"chmod 600 {path}")
        return path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise RefusedError(
            f"the token file {path} cannot be read: {error.strerror}",
            next_step="`moectl context add` names another file",
        ) from error

"""How old is what is shown? Said whenever it is older than it should be; unknown stays unknown.

Agents report about once a second, so a store that told nothing for some seconds does not answer. A
controller that does not answer at all leaves the last picture of this home, with its age.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

from ..core.paths import Home, write_private
from . import contexts
from .fleet_view import FleetView, fleet_from_plain
from .listings import format_age

STALE_S = 5.0


def warn_if_stale(fleet: FleetView) -> None:
    """Tell on stderr when the controller's own picture is old."""
    text = stale_text(fleet)
    if text:
        print(text, file=sys.stderr)


def stale_text(fleet: FleetView) -> str:
    """The warning, or nothing."""
    if fleet.store_age_s <= STALE_S:
        return ""
    age = format_age(fleet.store_age_s)
    return (
        f"stale: etcd has told the controller nothing for {age}; nodes, models and changes are"
        " shown as they were then. The data plane serves on."
    )


def remember(home: Home, plain: Any) -> None:
    """Keep the picture for a time without a controller; best effort."""
    try:
        write_private(_file(home), json.dumps({"kept_at": time.time(), "fleet": plain}))
    except OSError:
        return


def last_known(home: Home) -> tuple[FleetView, float] | None:
    """The last picture and its age in seconds, or None."""
    try:
        kept = json.loads(_file(home).read_text(encoding="utf-8"))
        age_s = max(0.0, time.time() - float(kept["kept_at"]))
        return fleet_from_plain(kept["fleet"]), age_s
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _file(home: Home) -> Path:
    name = contexts.name_in_force(home)
    return home.root / ("last-fleet.json" if name == contexts.LOCAL else f"last-fleet-{name}.json")

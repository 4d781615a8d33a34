"""What does a journal say about the HMM that wrote it?

`replay` turns effects into a `Past`: pools with their holders, layouts, claims, and reservations
that were open. It builds nothing else: whether the memory itself is still there is decided by who
hands its descriptor back (`state.py`).

The same effects carry a running HMM's state to its successor. Pure; standard library only.
"""

from dataclasses import dataclass, field
from typing import Any

from ...core.errors import MemoryPoolError
from ...core.paths import ProcessId
from ..arbiter import Claim
from ..backend import PageRun, expand
from ..pool import PagePool
from .journal import Effect


@dataclass(slots=True)
class PastDevice:
    """A device as it was declared, the identity of its memory, and who had its pages."""

    facts: dict[str, Any]
    pool: PagePool
    claims: dict[str, Claim] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PastReservation:
    """Pages that were promised to a process and neither committed nor forfeited."""

    device: str
    owner: str
    pages: tuple[int, ...]
    share: tuple[int, ...]
    process: ProcessId


@dataclass(slots=True)
class Past:
    """Everything that a journal tells."""

    devices: dict[str, PastDevice] = field(default_factory=dict)
    layouts: dict[str, dict[str, Any]] = field(default_factory=dict)
    reservations: dict[int, PastReservation] = field(default_factory=dict)
    committed: dict[int, None] = field(default_factory=dict)
    next_number: int = 1


def replay(effects: list[Effect]) -> Past:
    """The state after all effects. Raises MemoryPoolError when they do not fit together."""
    past = Past()
    try:
        for effect in effects:
            _apply(past, effect)
    except (KeyError, ValueError, TypeError, IndexError, AttributeError) as error:
        raise MemoryPoolError(f"the journal makes no sense: {error!r:.200}") from error
    return past


def device_effect(device: str, facts: dict[str, Any]) -> Effect:
    """A device was created."""
    return ["device", device, facts]


def reserve_effect(number: int, entry: PastReservation) -> Effect:
    """Pages were promised."""
    facts = {
        "device": entry.device,
        "owner": entry.owner,
        "pages": runs(entry.pages),
        "share": runs(entry.share),
        "process": [entry.process.pid, entry.process.start_ticks],
    }
    return ["reserve", number, facts]


def claims_effect(device: str, claims: dict[str, Claim]) -> Effect:
    """A device's pages are shared out by these claims."""
    plain = {party: [claim.guarantee, claim.weight] for party, claim in claims.items()}
    return ["claims", device, plain]


def runs(pages: tuple[int, ...]) -> list[list[int]]:
    """Pages as runs, ascending."""
    found: list[list[int]] = []
    for page in sorted(pages):
        if found and found[-1][0] + found[-1][1] == page:
            found[-1][1] += 1
        else:
            found.append([page, 1])
    return found


def _apply(past: Past, effect: Effect) -> None:
    match effect:
        case ["device", str(device), dict(facts)]:
            pool = PagePool(int(facts["page_count"]), device)
            past.devices[device] = PastDevice(facts, pool)
        case ["hold", str(device), str(owner), list(pages)]:
            past.devices[device].pool.restore(_pages(pages), owner)
        case ["free", str(device), str(owner), list(pages)]:
            past.devices[device].pool.free(_pages(pages), owner)
        case ["rename", str(device), str(old), str(new), list(pages)]:
            past.devices[device].pool.rename_owner(_pages(pages), old, new)
        case ["put", str(name), dict(layout)]:
            past.layouts[name] = layout
        case ["drop", str(name)]:
            past.layouts.pop(name, None)
        case ["claims", str(device), dict(claims)]:
            past.devices[device].claims = {
                str(party): Claim(int(guarantee), float(weight))
                for party, (guarantee, weight) in claims.items()
            }
        case ["reserve", int(number), dict(facts)]:
            past.reservations[number] = _reservation(facts)
            past.next_number = max(past.next_number, number + 1)
        case ["settle", int(number), bool(committed)]:
            entry = past.reservations.pop(number)
            if committed:
                past.committed[number] = None
                past.devices[entry.device].pool.restore((*entry.pages, *entry.share), entry.owner)
        case ["committed", int(number)]:
            past.committed[number] = None
            past.next_number = max(past.next_number, number + 1)
        case _:
            raise ValueError(f"unknown effect {effect!r:.100}")


def _reservation(facts: dict[str, Any]) -> PastReservation:
    pid, ticks = facts["process"]
    pages, share = _pages(facts["pages"]), _pages(facts["share"])
    process = ProcessId(int(pid), int(ticks))
    return PastReservation(str(facts["device"]), str(facts["owner"]), pages, share, process)


def _pages(plain: list[Any]) -> tuple[int, ...]:
    return expand([PageRun(int(first), int(count)) for first, count in plain])

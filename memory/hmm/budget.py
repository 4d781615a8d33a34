"""Who may have how many pages of a device, by the claims in force there?

A model claims before it reserves: while a transition is prepared its claims are *asked for* by one
connection and count beside those that were kept earlier, the larger guarantee of both. They are
kept at COMMIT, or end with the connection. So nobody can take the pages that KV gives back for the
experts that are about to come, and a worker that dies leaves no claim behind.

Numbers are the arbiter's business (`memory/arbiter.py`); here they meet the pool. No IO.
"""

from collections.abc import Mapping
from typing import NoReturn

from ...core.errors import MappingError, PoolExhaustedError
from ..arbiter import Claim, Verdict, admit, check_claims, party_of, room
from .holdings import Device

ABOVE = " above its share"  # how a refusal marks who could give pages back
SCOPE_END = "/"  # a model's parties are "MODEL/kv" and so on


def in_force(device: Device) -> dict[str, Claim]:
    """Claims that were kept, and over them those that are asked for: the larger guarantee."""
    claims = dict(device.claims)
    for asked in device.asked.values():
        for party, claim in asked.items():
            known = claims.get(party)
            least = max(claim.guarantee, known.guarantee if known else 0)
            claims[party] = Claim(least, claim.weight)
    return claims


def ask(device: Device, connection: int, claims: Mapping[str, Claim]) -> None:
    """Count these claims from now on, for as long as the connection lasts.

    A second request replaces the first. Raises PoolExhaustedError naming the holders when the
    guarantees cannot be kept beside those of others, or not now: then everything that the model
    still needs is named at once. Raises MappingError for numbers that are no claims.
    """
    check_claims({party: Claim(0, claim.weight) for party, claim in claims.items()}, 0)
    before = device.asked.pop(connection, None)
    try:
        _check_room(device, claims)
    except PoolExhaustedError:
        if before is not None:
            device.asked[connection] = before
        raise
    device.asked[connection] = dict(claims)


def _check_room(device: Device, claims: Mapping[str, Claim]) -> None:
    others = {who: claim for who, claim in in_force(device).items() if who not in claims}
    needed = sum(claim.guarantee for claim in claims.values())
    left = device.pool.total - sum(claim.guarantee for claim in others.values())
    if needed > left or any(claim.guarantee < 0 for claim in claims.values()):
        told = {f"guaranteed to {who}": each.guarantee for who, each in others.items()}
        told = {who: count for who, count in told.items() if count}
        raise PoolExhaustedError(device.handle.device_id, needed, max(0, left), told)
    used = used_by_party(device)
    above = {who: used.get(who, 0) - claim.guarantee for who, claim in claims.items()}
    missing = sum(-count for count in above.values() if count < 0)
    own = sum(count for count in above.values() if count > 0)  # its KV makes room for its experts
    rest = {who: count for who, count in used.items() if who not in claims}
    asking, lacking = next(iter(claims), ""), max(0, missing - own)
    shares = others | {asking: Claim(lacking, 0.0)}  # a guarantee comes before anyone's weight
    verdict = admit(asking, lacking, device.pool.free_count, rest, shares)
    if not verdict.admitted:
        device.wanted = dict(verdict.reclaim)
        _refuse(device, missing, verdict)
    device.wanted.clear()


def kept(device: Device, connection: int) -> dict[str, Claim]:
    """All claims of the device once those that a connection asked for are kept for good.

    Parties of the same model that it did not ask for go.
    """
    asked = device.asked.get(connection)
    if asked is None:
        raise MappingError(f"device {device.handle.device_id}: nothing was claimed here")
    scopes = {party.partition(SCOPE_END)[0] for party in asked}
    return without(device.claims, scopes) | asked


def without(claims: Mapping[str, Claim], scopes: set[str]) -> dict[str, Claim]:
    """Claims of all models but some."""
    return {
        who: claim for who, claim in claims.items() if who.partition(SCOPE_END)[0] not in scopes
    }


def used_by_party(device: Device) -> dict[str, int]:
    """party -> pages, those in open reservations included."""
    used: dict[str, int] = {}
    for holder, count in device.pool.holders().items():
        party = party_of(holder)
        used[party] = used.get(party, 0) + count
    return used


def check_share(device: Device, pages: int, owner: str) -> None:
    """Raise PoolExhaustedError when `pages` would eat into what is guaranteed to others."""
    claims = in_force(device)
    if not claims:
        return
    used = used_by_party(device)
    verdict = admit(party_of(owner), pages, device.pool.free_count, used, claims)
    if not verdict.admitted:
        _refuse(device, pages, verdict)


def _refuse(device: Device, pages: int, verdict: Verdict) -> NoReturn:
    told = device.pool.holders()
    told |= {f"guaranteed to {who}": count for who, count in verdict.held_back.items()}
    told |= {f"{who}{ABOVE}": count for who, count in verdict.reclaim.items()}
    raise PoolExhaustedError(device.handle.device_id, pages, verdict.available, told)


def room_for(device: Device, owner: str) -> int:
    """Pages by which a party may grow now without pushing anyone below its share."""
    used = used_by_party(device)
    return room(party_of(owner), device.pool.free_count, used, in_force(device))


def told(device: Device) -> dict[str, list[float]]:
    """party -> [guarantee in pages, weight], for `usage`."""
    return {who: [claim.guarantee, claim.weight] for who, claim in sorted(in_force(device).items())}

"""Who may have how many pages of a device, when experts, adapters and KV all want them?

One pool, no partitions: what one party gives back, any other can have at once. A party is a model's
kind of memory, "chat/experts", "chat/adapters", "chat/kv". It has a guarantee in pages, which the
others may not eat up while it is not using it, and a weight, which says how the rest is split when
all want more than there is.

    admit         may this party have so many pages now? if not: who is above its share, by how much
    fair_shares   how many pages would each get, if all were to ask for what they want at once
    room          by how many pages may a party grow, when it only takes what would be left over?

Pure: numbers in, numbers out. It never frees anything: it says who could, and they decide.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..core.errors import MappingError


@dataclass(frozen=True, slots=True)
class Claim:
    """What a party can count on: pages that are kept for it, and its part of the rest."""

    guarantee: int = 0
    weight: float = 1.0


_NONE = Claim(0, 0.0)  # of a party that claimed nothing: it wants no more than it has


@dataclass(frozen=True, slots=True)
class Verdict:
    """An answer with its reasons, all in pages.

    `held_back` is what other parties' guarantees keep free; `reclaim` says who holds more than its
    share, the one furthest above it first, and how much each would have to give back.
    """

    admitted: bool
    available: int
    held_back: Mapping[str, int] = field(default_factory=dict)
    reclaim: Mapping[str, int] = field(default_factory=dict)


def party_of(owner: str) -> str:
    """The party of an owner label: "chat/law/adapters" belongs to "chat/adapters"."""
    head, _, rest = owner.partition("/")
    return f"{head}/{rest.rpartition('/')[2]}" if rest else head


def check_claims(claims: Mapping[str, Claim], total: int) -> None:
    """Raise MappingError unless the guarantees can all be kept at once."""
    for party, claim in claims.items():
        if claim.guarantee < 0 or not 0 <= claim.weight < float("inf"):
            raise MappingError(f"{party}: {claim} is not a claim")
    asked = sum(claim.guarantee for claim in claims.values())
    if asked > total:
        raise MappingError(
            f"{asked} pages are guaranteed to {', '.join(sorted(claims))}, the device has {total}",
            next_step="lower the guarantees or raise hbm",
        )


def admit(
    party: str, pages: int, free: int, used: Mapping[str, int], claims: Mapping[str, Claim]
) -> Verdict:
    """Whether `party` may have `pages` more, where `free` are free and `used` is per party."""
    held_back = {
        other: claim.guarantee - used.get(other, 0)
        for other, claim in sorted(claims.items())
        if other != party and claim.guarantee > used.get(other, 0)
    }
    available = max(0, free - sum(held_back.values()))
    if pages <= available:
        return Verdict(True, available, held_back)
    wants = _least_wants(used, claims) | {party: used.get(party, 0) + pages}
    shares = fair_shares(free + sum(used.values()), wants, claims)
    above = {who: held - shares[who] for who, held in used.items() if held > shares[who]}
    order = sorted(above, key=lambda who: (-above[who] / max(_weight(claims, who), 1e-9), who))
    return Verdict(False, available, held_back, {who: above[who] for who in order if who != party})


def fair_shares(
    total: int, wants: Mapping[str, int], claims: Mapping[str, Claim]
) -> dict[str, int]:
    """Split `total` pages among parties that want `wants`: guarantees first, the rest by weight.

    Nobody gets more than it wants, nobody with a guarantee gets less than the smaller of guarantee
    and want (when the guarantees fit), and no page stays free while somebody wants it.
    """
    given = {who: 0 for who in wants}
    left = total
    for who in sorted(wants):
        given[who] = min(wants[who], claims.get(who, Claim()).guarantee, left)
        left -= given[who]
    while left > 0:
        hungry = [who for who in sorted(wants) if given[who] < wants[who]]
        if not hungry:
            break
        weights = {who: _weight(claims, who) for who in hungry}
        whole = sum(weights.values())
        if whole <= 0:  # only parties without weight want more: equal parts
            weights, whole = dict.fromkeys(hungry, 1.0), float(len(hungry))
        round_left = left
        for who in hungry:
            part = min(int(round_left * weights[who] / whole), wants[who] - given[who], left)
            given[who] += part
            left -= part
        if left == round_left:  # less than one page each: one by one, the heaviest first
            for who in sorted(hungry, key=lambda name: (-weights[name], name))[:left]:
                given[who] += 1
                left -= 1
    return given


def room(party: str, free: int, used: Mapping[str, int], claims: Mapping[str, Claim]) -> int:
    """Pages by which a party may grow into `free` without taking more than its share of the rest.

    Parties with a weight that hold pages are taken to want all there is; the others want what is
    guaranteed to them, or what they hold if that is more. So one model's KV takes everything that
    is over, and two share it by their weights.
    """
    whole = free + sum(used.values())
    wants = _least_wants(used, claims)
    wants |= {who: whole for who, held in used.items() if held and claims.get(who, _NONE).weight}
    wants[party] = whole
    share = fair_shares(whole, wants, claims)[party]
    held_back = admit(party, 0, free, used, claims).available
    return max(0, min(held_back, share - used.get(party, 0)))


def _least_wants(used: Mapping[str, int], claims: Mapping[str, Claim]) -> dict[str, int]:
    """What each party holds, or may come for at any moment."""
    return {
        who: max(used.get(who, 0), claims.get(who, Claim()).guarantee) for who in {*used, *claims}
    }


def _weight(claims: Mapping[str, Claim], who: str) -> float:
    return claims.get(who, Claim()).weight

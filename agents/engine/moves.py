"""Which requests of a rank that leaves go where, with their KV? Pure: what stands and what is free.

A request needs a lane and its blocks at one receiver. Higher priority goes first, then who has more
KV, because that is what a replay would compute again. Receivers of the same node come first (their
copy crosses no wire), then the one with most blocks left. What finds no room is replayed, and the
plan says why.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from .progress import Sequence

#: Blocks held at a receiver beyond what a request has now: it goes on decoding until the flip.
SPARE_BLOCKS = 1


@dataclass(frozen=True, slots=True)
class Standing:
    """A request as it stands between two steps. `starts` grows when its KV is given up."""

    id: str
    priority: int
    tokens: int  # prompt and generated so far
    tokens_max: int  # the most that it can become
    computed: int  # tokens whose KV is there
    blocks: tuple[int, ...]
    starts: int
    is_running: bool

    @classmethod
    def of(cls, sequence: Sequence, max_context: int) -> "Standing":
        """What stands now of a sequence."""
        request = sequence.request
        return cls(
            request.id,
            request.priority,
            len(sequence.tokens),
            min(request.tokens_max, max_context),
            sequence.computed,
            tuple(sequence.blocks),
            sequence.starts,
            sequence.lane >= 0,
        )

    def blocks_wanted(self, block_tokens: int) -> int:
        """Blocks to hold for it elsewhere; none while it waits, because nothing is computed."""
        if not self.is_running:
            return 0
        most = -(-self.tokens_max // block_tokens)
        return min(-(-self.tokens // block_tokens) + SPARE_BLOCKS, most)

    def whole_blocks(self, block_tokens: int) -> int:
        """Leading blocks that never change any more."""
        return self.computed // block_tokens


@dataclass(frozen=True, slots=True)
class Room:
    """What a receiving rank can take: `blocks` free beyond its own need, `lanes`, queue places."""

    device: str
    blocks: int
    lanes: int
    queue: int
    is_near: bool  # on the same node

    def fits(self, blocks: int, is_running: bool) -> bool:
        """Whether one more request has room here."""
        return self.queue > 0 and (not is_running or (self.lanes > 0 and self.blocks >= blocks))

    def less(self, blocks: int, is_running: bool) -> "Room":
        """The room that is left after one more request."""
        taken = (self.blocks - blocks, self.lanes - 1) if is_running else (self.blocks, self.lanes)
        return replace(self, blocks=taken[0], lanes=taken[1], queue=self.queue - 1)


@dataclass(frozen=True, slots=True)
class MovePlan:
    """Request id -> receiving device, or why it stays behind; and the room that is left."""

    moves: dict[str, str]
    stays: dict[str, str]
    rooms: tuple[Room, ...]


def plan_moves(
    requests: Iterable[Standing], rooms: Iterable[Room], block_tokens: int, turn: int = 0
) -> MovePlan:
    """Give every request a receiver with room for it, as far as there are any.

    `turn` is this rank's place among those that leave: of equal receivers they begin with
    different ones, because they plan without knowing of each other.
    """
    left = {room.device: room for room in rooms}
    order = {device: (place - turn) % len(left) for place, device in enumerate(left)}
    moves: dict[str, str] = {}
    stays: dict[str, str] = {}
    for request in sorted(requests, key=lambda r: (-r.priority, -r.computed, r.id)):
        need = request.blocks_wanted(block_tokens)
        fitting = [room for room in left.values() if room.fits(need, request.is_running)]
        if not fitting:
            stays[request.id] = _why(need, request.is_running, left.values())
            continue
        best = min(fitting, key=lambda room: (not room.is_near, -room.blocks, order[room.device]))
        moves[request.id] = best.device
        left[best.device] = best.less(need, request.is_running)
    return MovePlan(moves, stays, tuple(left.values()))


def _why(need: int, is_running: bool, rooms: Iterable[Room]) -> str:
    known = list(rooms)
    if not known:
        return "no rank stays that could take it"
    if not is_running or not any(room.lanes > 0 for room in known):
        return "every rank that stays has as many requests as it may have"
    most = max(room.blocks for room in known)
    return f"{need} KV blocks needed, at most {most} are free on a rank that stays"

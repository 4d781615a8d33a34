"""Which KV blocks are held here for requests that are on their way from another rank?

Bookkeeping over the rank's allocator; owned by the engine's thread like it. `changes` grows when
blocks were given other numbers or taken away: whoever remembers numbers looks at it first. That
only happens while the KV room's lock is held (kv_room.py).
"""

from collections.abc import Mapping

from .kv import BlockAllocator


class Incoming:
    """Blocks by request id, in the order of the request's tokens."""

    def __init__(self, blocks: BlockAllocator) -> None:
        self._blocks = blocks
        self._held: dict[str, list[int]] = {}
        self.changes = 0

    @property
    def count(self) -> int:
        """Requests for which something is held."""
        return len(self._held)

    def hold(self, request_id: str, count: int) -> bool:
        """Make it `count` blocks in all; False, and no change, when they are not free."""
        held = self._held.get(request_id, [])
        taken = self._blocks.allocate(max(count - len(held), 0))
        if taken is None:
            return False
        self._held[request_id] = held + taken
        return True

    def blocks_of(self, request_id: str) -> tuple[int, ...]:
        """Blocks held for a request."""
        return tuple(self._held.get(request_id, ()))

    def take(self, request_id: str) -> None:
        """The blocks belong to the request's sequence now."""
        self._held.pop(request_id, None)

    def drop(self, request_id: str) -> None:
        """Free what is held for a request; unknown ones are fine."""
        self._blocks.free(self._held.pop(request_id, ()))

    def move(self, moved: Mapping[int, int]) -> None:
        """Blocks got other numbers, their content with them."""
        if moved:
            self._held = {
                name: [moved.get(block, block) for block in held]
                for name, held in self._held.items()
            }
            self.changes += 1

    def drop_from(self, first: int) -> None:
        """Give up whatever holds a block numbered `first` or above (before a shrink)."""
        gone = [name for name, held in self._held.items() if max(held, default=-1) >= first]
        for name in gone:
            self.drop(name)
        self.changes += bool(gone)

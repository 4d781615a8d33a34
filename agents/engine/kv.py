"""Which KV blocks are free, and where does a block lie in the KV window?

`BlockAllocator` is pure bookkeeping; `KvPool` is the tensor over memory that somebody else owns (an
HMM window, a plain tensor in tests), of which the first `blocks` blocks are backed by pages now.
Neither maps a page: whoever does calls `grow` after mapping and unmaps only after `shrink`.

One block is [layers, 2, block_tokens, kv_heads, head_dim] contiguous, so that blocks come and go by
pages.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ...core.errors import InvariantError, MappingError


class BlockAllocator:
    """Free, held and remembered block numbers in 0..total. Lowest numbers are handed out first.

    A held block may have several holders, when its content is a common prefix. A block that nobody
    holds any more is free; while its content is remembered under a key it is the last to be handed
    out, the one longest unused first. `order` (tests) sets the order of the first blocks.
    """

    def __init__(self, total_blocks: int, order: Sequence[int] | None = None) -> None:
        self.total = total_blocks
        chosen = list(range(total_blocks)) if order is None else list(order)
        if sorted(chosen) != list(range(total_blocks)):
            raise MappingError(f"order must name every block of {total_blocks} once")
        self._free = chosen[::-1]
        self._holders: dict[int, int] = {}  # block -> how many
        self._resting: dict[int, None] = {}  # remembered, held by nobody; longest unused first
        self._key_of: dict[int, bytes] = {}
        self._block_of: dict[bytes, int] = {}

    @property
    def free_count(self) -> int:
        """Blocks that can be allocated now."""
        return len(self._free) + len(self._resting)

    @property
    def used_count(self) -> int:
        """Blocks held by somebody."""
        return len(self._holders)

    @property
    def remembered_count(self) -> int:
        """Blocks whose content can be found by its key, held or not."""
        return len(self._key_of)

    def allocate(self, count: int) -> list[int] | None:
        """`count` blocks, or None and no change when fewer are free."""
        if count > self.free_count:
            return None
        taken = [self._free.pop() if self._free else self._oldest() for _ in range(count)]
        self._holders.update(dict.fromkeys(taken, 1))
        return taken

    def hold(self, key: bytes) -> int | None:
        """One more holder for the block remembered under a key; None when there is none."""
        block = self._block_of.get(key)
        if block is not None:
            self._resting.pop(block, None)
            self._holders[block] = self._holders.get(block, 0) + 1
        return block

    def remember(self, block: int, key: bytes) -> None:
        """A held block's content is complete: find it by this key. The first of equals is kept."""
        if key not in self._block_of and block not in self._key_of:
            self._key_of[block], self._block_of[key] = key, block

    def free(self, blocks: Iterable[int]) -> None:
        """Give blocks back. Raises InvariantError for a block that is not held."""
        rested = []
        for block in blocks:
            if block not in self._holders:
                raise InvariantError(f"block {block} freed but not held")
            self._holders[block] -= 1
            if self._holders[block]:
                continue
            del self._holders[block]
            if block in self._key_of:
                rested.append(block)
            else:
                self._free.append(block)
        # The end of a prefix is of no use without its beginning: let it go first.
        self._resting.update(dict.fromkeys(reversed(rested)))

    def grow(self, count: int) -> None:
        """Add blocks total..total+count."""
        self._free[:0] = range(self.total + count - 1, self.total - 1, -1)
        self.total += count

    def relocate(self, first: int) -> dict[int, int]:
        """Give held blocks numbered `first` or above a lower place each, as far as there are any.

        Returns old number -> new number; holders and key move along, the content is the caller's
        to copy before anything else is allocated. Free places go first, then remembered content.
        """
        places = [block for block in self._resting if block < first][::-1]
        places += sorted((block for block in self._free if block < first), reverse=True)
        moved: dict[int, int] = {}
        for block in sorted(block for block in self._holders if block >= first):
            if not places:
                break
            place = moved[block] = places.pop()
            if place in self._resting:
                self._forget(place)
            self._holders[place] = self._holders.pop(block)
            key = self._key_of.pop(block, None)
            if key is not None:
                self._key_of[place], self._block_of[key] = key, place
        self._free = [*moved, *(b for b in self._free if b not in set(moved.values()))]
        return moved

    def shrink(self, count: int) -> None:
        """Take the last `count` blocks away. Raises MappingError when one of them is held."""
        first = self.total - count
        held = sorted(block for block in self._holders if block >= first)
        if first < 0 or held:
            raise MappingError(
                f"cannot drop the last {count} of {self.total} KV blocks; held: {held[:8]}",
                next_step="preempt their requests first",
            )
        for block in [block for block in self._resting if block >= first]:
            self._forget(block)
        self._free = [block for block in self._free if block < first]
        self.total = first

    def check(self) -> None:
        """Raise InvariantError unless every block is free, resting or held, and none twice."""
        free, held, resting = set(self._free), set(self._holders), set(self._resting)
        if len(free) != len(self._free) or free & held or free & resting or held & resting:
            raise InvariantError("a KV block is listed twice")
        if free | held | resting != set(range(self.total)):
            raise InvariantError(f"free + used is not all of {self.total} KV blocks")
        if {block: key for key, block in self._block_of.items()} != self._key_of:
            raise InvariantError("keys and blocks of the prefix cache disagree")
        if resting - set(self._key_of) or free & set(self._key_of):
            raise InvariantError("a resting KV block without a key, or a free one with one")

    def _oldest(self) -> int:
        block = next(iter(self._resting))
        self._forget(block)
        return block

    def _forget(self, block: int) -> None:
        del self._resting[block]
        del self._block_of[self._key_of.pop(block)]


class KvPool:
    """The KV tensor of one rank and how many of its blocks are backed.

    `view` is [max_blocks, layers, 2, block_tokens, kv_heads, head_dim]; only the first `blocks` of
    them may be touched. The memory behind the rest may be unmapped.
    """

    def __init__(self, view: Tensor, blocks: int | None = None) -> None:
        self.view = view
        self.layers = [view[:, layer] for layer in range(view.shape[1])]
        self.blocks = self._checked(view.shape[0] if blocks is None else blocks)

    @classmethod
    def over(cls, flat: Tensor, block_shape: Sequence[int], blocks: int) -> "KvPool":
        """A pool over a flat tensor (a window's view), as many blocks as fit, `blocks` backed."""
        elements = torch.Size(block_shape).numel()
        fitting = flat.numel() // elements
        return cls(flat[: fitting * elements].view(fitting, *block_shape), blocks)

    @property
    def block_tokens(self) -> int:
        """Positions per block."""
        return int(self.view.shape[3])

    def grow(self, count: int) -> None:
        """`count` more blocks are backed now."""
        self.blocks = self._checked(self.blocks + count)

    def shrink(self, count: int) -> None:
        """The last `count` backed blocks will be unmapped."""
        self.blocks = self._checked(self.blocks - count)

    def bytes_of(self, first: int, count: int) -> Tensor:
        """`count` neighbouring blocks from `first` on as uint8, flat; writing it writes them."""
        return self.view[first : first + count].view(-1).view(torch.uint8)

    @property
    def block_bytes(self) -> int:
        """Bytes of one block."""
        return int(self.view[0].numel()) * self.view.element_size()

    def copy(self, source: int, target: int) -> None:
        """The content of a backed block into another one."""
        self.view[target].copy_(self.view[source])

    def _checked(self, blocks: int) -> int:
        room = self.view.shape[0]
        if not 0 <= blocks <= room:
            raise MappingError(f"{blocks} KV blocks; the window has room for 0 to {room}")
        return blocks

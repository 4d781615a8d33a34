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
    """Free and used block numbers in 0..total. Lowest numbers are handed out first.

    `order` (tests) sets the order in which the first blocks are handed out.
    """

    def __init__(self, total_blocks: int, order: Sequence[int] | None = None) -> None:
        self.total = total_blocks
        chosen = list(range(total_blocks)) if order is None else list(order)
        if sorted(chosen) != list(range(total_blocks)):
            raise MappingError(f"order must name every block of {total_blocks} once")
        self._free = chosen[::-1]
        self._used: set[int] = set()

    @property
    def free_count(self) -> int:
        """Blocks that can be allocated now."""
        return len(self._free)

    @property
    def used_count(self) -> int:
        """Blocks held by somebody."""
        return len(self._used)

    def allocate(self, count: int) -> list[int] | None:
        """`count` blocks, or None and no change when fewer are free."""
        if count > len(self._free):
            return None
        taken = [self._free.pop() for _ in range(count)]
        self._used.update(taken)
        return taken

    def free(self, blocks: Iterable[int]) -> None:
        """Give blocks back. Raises InvariantError for a block that is not held."""
        for block in blocks:
            if block not in self._used:
                raise InvariantError(f"block {block} freed but not held")
            self._used.remove(block)
            self._free.append(block)

    def grow(self, count: int) -> None:
        """Add blocks total..total+count."""
        self._free[:0] = range(self.total + count - 1, self.total - 1, -1)
        self.total += count

    def shrink(self, count: int) -> None:
        """Take the last `count` blocks away. Raises MappingError when one of them is held."""
        first = self.total - count
        held = sorted(block for block in self._used if block >= first)
        if first < 0 or held:
            raise MappingError(
                f"cannot drop the last {count} of {self.total} KV blocks; held: {held[:8]}",
                next_step="preempt their requests first",
            )
        self._free = [block for block in self._free if block < first]
        self.total = first

    def check(self) -> None:
        """Raise InvariantError unless every block is free or used, and none twice."""
        free = set(self._free)
        if len(free) != len(self._free) or free & self._used:
            raise InvariantError("a KV block is listed twice")
        if free | self._used != set(range(self.total)):
            raise InvariantError(f"free + used is not all of {self.total} KV blocks")


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

    def _checked(self, blocks: int) -> int:
        room = self.view.shape[0]
        if not 0 <= blocks <= room:
            raise MappingError(f"{blocks} KV blocks; the window has room for 0 to {room}")
        return blocks

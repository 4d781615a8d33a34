"""How far is each request, and what runs in one step? The scheduler's words.

Plain data and the rules that need nothing else: where a sequence stands in line, and the chain of
keys by which blocks of equal content are found. No decision is made here.
"""

import hashlib
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from ...core.errors import RefusedError
from .request import Request

#: A key is a digest of everything up to the block's end: long enough that two texts never meet.
KEY_BYTES = 16


class EngineRefused(RefusedError):
    """A request that this engine will not take; `str()` says why."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The budget of one rank. Values come from the model's spec."""

    max_batch_tokens: int = 128
    max_requests: int = 64
    prefill_chunk: int = 64
    block_tokens: int = 16
    max_context: int = 4096
    max_queued: int = 256
    prefix_cache: bool = True

    @property
    def max_running(self) -> int:
        """Requests that decode at once; leaves part of the budget to prompts."""
        prompt_share = min(self.prefill_chunk, self.max_batch_tokens // 2)
        return max(1, min(self.max_requests, self.max_batch_tokens - prompt_share))


@dataclass(slots=True, eq=False)
class Sequence:
    """A request in progress: its tokens, how many have KV, and where. `arrival` counts submits."""

    request: Request
    tokens: list[int]
    arrival: int = 0
    computed: int = 0
    blocks: list[int] = field(default_factory=list)
    lane: int = -1
    is_reading: bool = False  # among the prompts that are read in chunks
    cancelled: str = ""
    remembered: int = 0  # leading blocks that were offered to the prefix cache
    starts: int = 0  # how often its KV was given up
    _keys: list[bytes] = field(default_factory=list)

    @property
    def generated(self) -> int:
        """Generated tokens, those before a replay included."""
        return len(self.tokens) - len(self.request.prompt_ids)

    @property
    def is_decoding(self) -> bool:
        """Whether exactly the newest token lacks KV."""
        return self.computed == len(self.tokens) - 1

    @property
    def place(self) -> tuple[int, int]:
        """Where it stands in line: higher priority first, then who came first."""
        return (-self.request.priority, self.arrival)

    def key(self, index: int, block_tokens: int) -> bytes:
        """The key of full block `index`: of its content and of all content before it."""
        while len(self._keys) <= index:
            at = len(self._keys) * block_tokens
            before = self._keys[-1] if self._keys else self.request.cache_salt.encode()
            content = array("q", self.tokens[at : at + block_tokens]).tobytes()
            digest = hashlib.blake2b(before, digest_size=KEY_BYTES)
            digest.update(content)
            self._keys.append(digest.digest())
        return self._keys[index]


@dataclass(frozen=True, slots=True)
class StepItem:
    """Rows start..start+count of one sequence; the last is sampled when it is the newest token."""

    sequence: Sequence
    start: int
    count: int
    samples: bool


@dataclass(frozen=True, slots=True)
class StepPlan:
    """The rows of one step, in batch order."""

    items: tuple[StepItem, ...]
    row_count: int
    sampled_count: int


def with_lanes(table_LW: np.ndarray, lanes: int) -> np.ndarray:
    """A block table with so many lanes: the first ones as they were, new ones empty."""
    table = np.zeros((lanes, table_LW.shape[1]), dtype=table_LW.dtype)
    kept = min(lanes, len(table_LW))
    table[:kept] = table_LW[:kept]
    return table


def blocks_to_finish(sequences: Iterable[Sequence], limits: Limits) -> int:
    """KV blocks that all of them would hold at their ends, none of them shared."""
    requests = (sequence.request for sequence in sequences)
    lengths = (min(len(r.prompt_ids) + r.max_tokens, limits.max_context) for r in requests)
    return sum(-(-length // limits.block_tokens) for length in lengths)

"""Which worker has probably computed the beginning of this prompt already? A bounded memory.

A prompt is cut into chunks; the key of a chunk is a digest of everything up to its end, so equal
keys mean equal beginnings. For each key the workers that were last sent such a prompt are kept.
It is a guess, never a promise: a worker that has forgotten only computes again. Pure.
"""

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence

CHUNK_TOKENS = 32
CHUNKS_MAX = 64  # 2,048 tokens tell prompts apart well enough
HOMES_MAX = 8  # workers kept per key: enough to spread a popular beginning
ENTRIES_MAX = 1 << 16  # about 10 MB
_KEY_BYTES = 12

Keys = tuple[bytes, ...]


def prefix_keys(ids: Sequence[int], salt: str = "") -> Keys:
    """The keys of a prompt's whole chunks, shortest beginning first."""
    keys = []
    before = salt.encode()
    for end in range(CHUNK_TOKENS, min(len(ids), CHUNKS_MAX * CHUNK_TOKENS) + 1, CHUNK_TOKENS):
        chunk = array("q", ids[end - CHUNK_TOKENS : end]).tobytes()
        before = hashlib.blake2b(before + chunk, digest_size=_KEY_BYTES).digest()
        keys.append(before)
    return tuple(keys)


class PrefixHomes:
    """Remembers who was sent which beginnings; the longest unused is forgotten first."""

    def __init__(self, entries_max: int = ENTRIES_MAX) -> None:
        self._entries_max = entries_max
        self._homes: OrderedDict[bytes, tuple[str, ...]] = OrderedDict()

    def matched(self, keys: Keys) -> dict[str, int]:
        """Worker's address -> how many chunks of this prompt it was sent before."""
        found: dict[str, int] = {}
        for count, key in enumerate(keys, 1):
            homes = self._homes.get(key)
            if homes is None:
                break
            for address in homes:
                found[address] = count
        return found

    def note(self, keys: Keys, address: str) -> None:
        """A prompt with these keys goes to this worker."""
        for key in keys:
            others = tuple(home for home in self._homes.pop(key, ()) if home != address)
            self._homes[key] = (address, *others)[:HOMES_MAX]
        while len(self._homes) > self._entries_max:
            self._homes.popitem(last=False)

"""What do the ranks of one node exchange through: shared memory and one doorbell per pair.

A channel is a memfd of `ranks * bytes_per_rank` bytes and a square of eventfds; ringing
`eventfds[i][j]` tells rank j that rank i has written (the diagonal is rank i's own doorbell). The
HMM makes it once per name and hands the same descriptors to every caller, so no rank has to know
how another was started. It lives until it is dropped, not until a client dies: a healed rank finds
it again.

This file must never look into the memory: what it means is the engine's business.
"""

import os
from dataclasses import dataclass

from ...core.errors import MappingError, MemoryPoolError
from ..host import sealed_memfd

RANKS_MAX = 16  # devices of one machine; the square of it is what the descriptor limit has to hold
BYTES_MAX = 1 << 30  # exchange buffers of one epoch, lazily touched
CHANNELS_MAX = 64  # models times two epochs (old and next), with room
DESCRIPTORS_MAX = 8192  # of all channels together; half of the usual hard limit per process


@dataclass(frozen=True, slots=True)
class Channel:
    """The descriptors of one channel, owned by the HMM."""

    name: str
    ranks: int
    bytes_per_rank: int
    memfd: int
    eventfds: tuple[int, ...]  # row by row: ranks * ranks of them

    @property
    def bytes(self) -> int:
        """Size of the shared memory."""
        return self.ranks * self.bytes_per_rank

    @property
    def fds(self) -> tuple[int, ...]:
        """All descriptors in the order in which they are sent."""
        return (self.memfd, *self.eventfds)

    def close(self) -> None:
        """Close the owner's descriptors; what clients received stays valid for them."""
        for fd in self.fds:
            os.close(fd)


class Channels:
    """The channels of a node, by name."""

    def __init__(self) -> None:
        self._by_name: dict[str, Channel] = {}

    def get(self, name: str, ranks: int, bytes_per_rank: int) -> Channel:
        """The channel of that name, made on the first call.

        Raises MappingError when it exists with other sizes, or the sizes are beyond the limits.
        """
        known = self._by_name.get(name)
        if known is None:
            self._check_limits(name, ranks, bytes_per_rank)
            known = _create(name, ranks, bytes_per_rank)
            self._by_name[name] = known
        if (known.ranks, known.bytes_per_rank) != (ranks, bytes_per_rank):
            raise MappingError(
                f"channel {name} has {known.ranks} ranks of {known.bytes_per_rank} bytes, "
                f"{ranks} of {bytes_per_rank} were asked for",
                next_step="give every epoch its own channel name",
            )
        return known

    def known(self, name: str) -> Channel:
        """The channel of that name; KeyError when there is none."""
        return self._by_name[name]

    def restore(self, channel: Channel) -> None:
        """Keep a channel that a predecessor made."""
        self._by_name[channel.name] = channel

    def drop(self, name: str) -> bool:
        """Close a channel; False when there was none."""
        channel = self._by_name.pop(name, None)
        if channel is not None:
            channel.close()
        return channel is not None

    def names(self) -> list[str]:
        """Every channel's name, sorted."""
        return sorted(self._by_name)

    def close(self) -> None:
        """Close all of them."""
        for name in self.names():
            self.drop(name)

    def _check_limits(self, name: str, ranks: int, bytes_per_rank: int) -> None:
        if not 1 <= ranks <= RANKS_MAX or not 1 <= bytes_per_rank * ranks <= BYTES_MAX:
            raise MappingError(
                f"channel {name}: {ranks} ranks of {bytes_per_rank} bytes; at most {RANKS_MAX} "
                f"ranks and {BYTES_MAX} bytes in all are allowed"
            )
        held = sum(len(channel.fds) for channel in self._by_name.values())
        if len(self._by_name) >= CHANNELS_MAX or held + ranks * ranks + 1 > DESCRIPTORS_MAX:
            raise MappingError(
                f"channel {name}: {len(self._by_name)} channels with {held} descriptors exist",
                next_step="drop the channels of retired epochs",
            )


def _create(name: str, ranks: int, bytes_per_rank: int) -> Channel:
    eventfds: list[int] = []
    memfd = sealed_memfd(f"moectl-channel-{name[:100]}", ranks * bytes_per_rank)
    try:
        for _ in range(ranks * ranks):
            eventfds.append(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))
    except OSError as error:
        for fd in (memfd, *eventfds):
            os.close(fd)
        raise MemoryPoolError(
            f"channel {name}: out of descriptors: {error}", next_step="raise `ulimit -n`"
        ) from error
    return Channel(name, ranks, bytes_per_rank, memfd, tuple(eventfds))

"""How does a process that was forked from a worker let go of the device memory it inherited?

Mappings are inherited, and a mapping keeps its memory for as long as it stands, whoever gave the
pages back. So a process that serves nobody replaces all of them by inaccessible addresses: tensors
that it inherited too fault when read, and nothing else ever lands at their addresses.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

from .host import HostBackend

#: Memory of devices, and of groups of ranks, is memfds; a library is mapped from a file.
MEMFD = "/memfd:"


def drop_shared_mappings(maps: Path = Path("/proc/self/maps")) -> int:
    """Make every shared mapping of a memfd of this process inaccessible; returns the bytes."""
    mapper, dropped = HostBackend(), 0
    for address, size in list(shared_memfds(maps.read_text().splitlines())):
        mapper.unmap(address, size)
        dropped += size
    return dropped


def shared_memfds(lines: Iterable[str]) -> Iterator[tuple[int, int]]:
    """(address, bytes) of the shared mappings of memfds in lines of /proc/PID/maps (proc(5))."""
    for line in lines:
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[1].endswith("s") and fields[5].startswith(MEMFD):
            start, end = (int(part, 16) for part in fields[0].split("-"))
            yield start, end - start

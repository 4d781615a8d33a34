"""How much memory can this machine still give, before others suffer?

Two limits count: what the machine has available, and what a control group that we run in may use.
Standard library only: the HMM's children import this.
"""

from collections.abc import Callable
from pathlib import Path

KEEP_BYTES_MIN = 1 << 30  # what others need to go on: a page cache, a shell, another worker
KEEP_SHARE = 8  # of large machines: one part in eight

_MEMINFO = Path("/proc/meminfo")
_GROUPS = (  # limit, what is used of it, and what of that could be dropped
    ("memory.max", "memory.current", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
)


def available_bytes(
    meminfo: Path = _MEMINFO, groups: Path = Path("/sys/fs/cgroup")
) -> tuple[int, int]:
    """(bytes that can be had now, bytes of the whole): the tighter of machine and group."""
    told = _numbers(meminfo)
    free, whole = told.get("MemAvailable", 0) * 1024, told.get("MemTotal", 0) * 1024
    for limit_name, used_name, cache_name in _GROUPS:
        limit, used = _number(groups / limit_name), _number(groups / used_name)
        if limit is None or used is None or limit >= whole:
            continue
        cache = _numbers((groups / limit_name).with_name("memory.stat")).get(cache_name, 0)
        free, whole = min(free, max(0, limit - used + cache)), limit
    return free, whole


def spare_bytes(look: Callable[[], tuple[int, int]] = available_bytes) -> int:
    """Bytes that may be taken ahead of need: what is available less what others must keep."""
    free, whole = look()
    return max(0, free - max(KEEP_BYTES_MIN, whole // KEEP_SHARE))


def _numbers(path: Path) -> dict[str, int]:
    """Lines of "name: number ..." or "name number"; nothing where it cannot be read."""
    try:
        lines = [line.replace(":", " ").split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {words[0]: int(words[1]) for words in lines if len(words) > 1 and words[1].isdigit()}


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # not there, or the word "max"
        return None

"""A process that was forked from a worker lets go of the memory of devices, and of nothing else."""

import subprocess
import sys

from moectl.memory.inherited import shared_memfds

ASK = """
import mmap, os
from moectl.memory.inherited import drop_shared_mappings, shared_memfds
SIZE = 4 * mmap.PAGESIZE
shared, private = os.memfd_create("device"), os.memfd_create("mine")
for fd in (shared, private):
    os.truncate(fd, SIZE)
window = mmap.mmap(shared, SIZE)
copy = mmap.mmap(private, SIZE, mmap.MAP_PRIVATE)
copy[:2] = b"ok"
lines = lambda: open("/proc/self/maps").read().splitlines()
before = list(shared_memfds(lines()))
assert len(before) == 1 and before[0][1] == SIZE, before
assert drop_shared_mappings() == SIZE
assert list(shared_memfds(lines())) == []
start = f"{before[0][0]:x}-"
(left,) = [line for line in lines() if line.startswith(start)]
assert left.split()[1] == "---p", left  # nothing else can land there
assert copy[:2] == b"ok" and os.pread(shared, 1, 0) == b"\\0"
os._exit(0)  # the mapping that is gone must not be closed
"""


def test_shared_memory_of_a_memfd_becomes_inaccessible_and_all_else_stays():
    done = subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_only_shared_mappings_of_memfds_are_named():
    lines = [
        "7f00000000-7f00004000 rw-s 00000000 00:01 12 /memfd:moectl-d0 (deleted)",
        "7f00004000-7f00005000 r--s 00000000 00:01 12 /memfd:moectl-d0 (deleted)",
        "7f00005000-7f00006000 rw-p 00000000 00:01 13 /memfd:other (deleted)",
        "7f00006000-7f00007000 rw-s 00000000 00:01 14 /usr/lib/locale/C.utf8/gconv",
        "7f00007000-7f00008000 rw-p 00000000 00:00 0 ",
    ]
    assert list(shared_memfds(lines)) == [(0x7F00000000, 0x4000), (0x7F00004000, 0x1000)]

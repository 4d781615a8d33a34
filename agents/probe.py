"""What does this machine really have of what was declared? Checked before anything is started.

A `cpu` device is a share of the machine's memory. Devices of other kinds need a back end; without
it they are refused here, by name, instead of failing in a worker.
"""

import os
from collections.abc import Sequence

from ..core.errors import RefusedError
from ..core.records import DeviceRecord
from ..core.units import format_bytes

SUPPORTED_KINDS = frozenset({"cpu"})


def probe(declared: Sequence[DeviceRecord]) -> tuple[DeviceRecord, ...]:
    """The devices that can be served; raises RefusedError naming what cannot."""
    for device in declared:
        if device.kind not in SUPPORTED_KINDS:
            raise RefusedError(
                f"device {device.id}: kind {device.kind!r} has no memory back end here",
                next_step=f"declare one of: {', '.join(sorted(SUPPORTED_KINDS))}",
            )
        if device.page_bytes < 1 or device.hbm_bytes < device.page_bytes:
            raise RefusedError(
                f"device {device.id}: hbm {device.hbm_bytes} B holds no page of "
                f"{device.page_bytes} B",
                next_step="raise hbm or lower pageSize",
            )
    return tuple(declared)


def memory_warning(declared: Sequence[DeviceRecord]) -> str:
    """A sentence when the declared devices could outgrow this machine's memory, else empty."""
    wanted = sum(device.hbm_bytes for device in declared if device.kind == "cpu")
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if wanted <= total:
        return ""
    return (
        f"the cpu devices of this node declare {format_bytes(wanted)} of HBM, the machine has "
        f"{format_bytes(total)} of memory"
    )

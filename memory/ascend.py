"""How do the pages of an Ascend NPU become pages of the pool? ACL's virtual memory calls by ctypes.

Not verified on hardware: there was none. The call sequences are tested against a small library that
implements these functions over memfds with ACL's own restrictions: a handle is mapped whole and at
offset 0, exported once, imported only by processes on its list, and a reserved range holds pages of
one device, created here or imported, never both.

Values are those of the public headers (acl_rt.h). Everything needs `aclInit` and a current device;
both are done when the first page of a device is made or imported.
"""

import ctypes
from typing import Any

from ..core.errors import MappingError, MemoryPoolError
from .paged import PagedBackend

LIBRARY = "libascendcl.so"

_HANDLE_TYPE_NONE = 0
_ALLOCATION_PINNED = 0
_HBM_HUGE = 4  # pages of 2 MiB
_LOCATION_DEVICE = 1
_GRANULARITY_MINIMUM = 0
_READ, _READ_WRITE = 0x1, 0x3
_DEVICE_TO_DEVICE = 3
_SUCCESS, _REPEAT_INITIALIZE, _OUT_OF_MEMORY = 0, 100002, 207001


class _Location(ctypes.Structure):
    _fields_ = (("id", ctypes.c_uint32), ("type", ctypes.c_int))


class _Properties(ctypes.Structure):
    _fields_ = (
        ("handle_type", ctypes.c_int),
        ("allocation_type", ctypes.c_int),
        ("attribute", ctypes.c_int),
        ("location", _Location),
        ("reserve", ctypes.c_uint64),
    )


class _Access(ctypes.Structure):
    _fields_ = (
        ("flags", ctypes.c_int),
        ("location", _Location),
        ("reserved", ctypes.c_uint8 * 12),
    )


class AscendDriver:
    """`DriverCalls` of libascendcl."""

    kind = "ascend"
    page_kind = "hbm-huge"
    shares_fds = False

    def __init__(self, library: str = LIBRARY) -> None:
        try:
            self._acl = ctypes.CDLL(library)
        except OSError as error:
            raise MappingError(
                f"ascend devices need {library}: {error}",
                next_step="install CANN and source its set_env.sh",
            ) from error
        _declare(self._acl)
        self._devices: set[int] = set()
        status = self._acl.aclInit(None)
        if status not in (_SUCCESS, _REPEAT_INITIALIZE):
            raise MappingError(f"aclInit: error {status}")

    def granularity(self, device: int) -> int:
        """ACL's smallest page."""
        self._use(device)
        found = ctypes.c_size_t()
        properties = _properties(device)
        self._call(
            "aclrtMemGetAllocationGranularity",
            ctypes.byref(properties),
            _GRANULARITY_MINIMUM,
            ctypes.byref(found),
        )
        return found.value

    def create(self, device: int, bytes: int) -> object:
        """aclrtMallocPhysical."""
        self._use(device)
        handle, properties = ctypes.c_void_p(), _properties(device)
        self._call("aclrtMallocPhysical", ctypes.byref(handle), bytes, ctypes.byref(properties), 0)
        return handle

    def release(self, handle: object) -> None:
        """aclrtFreePhysical: every process frees its own handle."""
        self._call("aclrtFreePhysical", handle)

    def export(self, handle: object) -> int:
        """A number; a second export of the same handle would fail."""
        shareable = ctypes.c_uint64()
        name = "aclrtMemExportToShareableHandle"
        self._call(name, handle, _HANDLE_TYPE_NONE, 0, ctypes.byref(shareable))
        return shareable.value

    def allow(self, exported: int, process: int) -> None:
        """Put a process on the number's list: one call takes one."""
        pid = ctypes.c_int32(process)
        self._call("aclrtMemSetPidToShareableHandle", exported, ctypes.byref(pid), 1)

    def import_(self, exported: int, device: int) -> object:
        """aclrtMemImportFromShareableHandle."""
        self._use(device)
        handle = ctypes.c_void_p()
        self._call("aclrtMemImportFromShareableHandle", exported, device, ctypes.byref(handle))
        return handle

    def process(self) -> int:
        """The number that the device knows this process by, also inside a container."""
        pid = ctypes.c_int32()
        self._call("aclrtDeviceGetBareTgid", ctypes.byref(pid))
        return pid.value

    def reserve(self, bytes: int) -> int:
        """aclrtReserveMemAddress; alignment must be 0, the address is ACL's choice."""
        address = ctypes.c_void_p()
        self._call("aclrtReserveMemAddress", ctypes.byref(address), bytes, 0, None, 0)
        return int(address.value or 0)

    def free(self, address: int, bytes: int) -> None:
        """aclrtReleaseMemAddress."""
        self._call("aclrtReleaseMemAddress", address)

    def map(self, address: int, bytes: int, handle: object) -> None:
        """aclrtMapMem: whole, at offset 0."""
        self._call("aclrtMapMem", address, bytes, 0, handle, 0)

    def access(self, address: int, bytes: int, device: int, writable: bool) -> None:
        """aclrtMemSetAccess for the device itself."""
        flags = _READ_WRITE if writable else _READ
        access = _Access(flags, _Location(device, _LOCATION_DEVICE))
        self._call("aclrtMemSetAccess", address, bytes, ctypes.byref(access), 1)

    def unmap(self, address: int, bytes: int) -> None:
        """aclrtUnmapMem."""
        self._call("aclrtUnmapMem", address)

    def copy(self, target: int, source: int, bytes: int) -> None:
        """aclrtMemcpyAsync, the only copy allowed between devices for such memory, then wait."""
        self._call("aclrtMemcpyAsync", target, bytes, source, bytes, _DEVICE_TO_DEVICE, None)
        self._call("aclrtSynchronizeStream", None)

    def _use(self, device: int) -> None:
        if device not in self._devices:
            self._call("aclrtSetDevice", device)
            self._devices.add(device)

    def _call(self, name: str, *arguments: Any) -> None:
        status = int(getattr(self._acl, name)(*arguments))
        if status == _OUT_OF_MEMORY:
            raise MemoryPoolError(f"{name}: the device is out of memory")
        if status != _SUCCESS:
            raise MappingError(f"{name}: ACL error {status}")


class AscendBackend(PagedBackend):
    """`Backend` of Ascend NPUs."""

    def __init__(self, library: str = LIBRARY) -> None:
        super().__init__(AscendDriver(library))


def _properties(device: int) -> _Properties:
    location = _Location(device, _LOCATION_DEVICE)
    return _Properties(_HANDLE_TYPE_NONE, _ALLOCATION_PINNED, _HBM_HUGE, location, 0)


def _declare(acl: Any) -> None:
    """Argument types of every function: ctypes would cut addresses to 32 bits otherwise."""
    pointer, size, flags, number = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint64, ctypes.c_int32
    signatures: dict[str, list[Any]] = {
        "aclInit": [ctypes.c_char_p],
        "aclrtSetDevice": [number],
        "aclrtDeviceGetBareTgid": [pointer],
        "aclrtMemGetAllocationGranularity": [pointer, ctypes.c_int, pointer],
        "aclrtMallocPhysical": [pointer, size, pointer, flags],
        "aclrtFreePhysical": [pointer],
        "aclrtReserveMemAddress": [pointer, size, size, pointer, flags],
        "aclrtReleaseMemAddress": [pointer],
        "aclrtMapMem": [pointer, size, size, pointer, flags],
        "aclrtUnmapMem": [pointer],
        "aclrtMemSetAccess": [pointer, size, pointer, size],
        "aclrtMemExportToShareableHandle": [pointer, ctypes.c_int, flags, pointer],
        "aclrtMemSetPidToShareableHandle": [flags, pointer, size],
        "aclrtMemImportFromShareableHandle": [flags, number, pointer],
        "aclrtMemcpyAsync": [pointer, size, pointer, size, ctypes.c_int, pointer],
        "aclrtSynchronizeStream": [pointer],
    }
    for name, arguments in signatures.items():
        function = getattr(acl, name)
        function.argtypes, function.restype = arguments, ctypes.c_int

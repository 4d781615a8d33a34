"""How do the pages of an NVIDIA GPU become pages of the pool? The driver's virtual memory calls.

Needs `cuda-bindings` (the extra "gpu"); nothing is imported before a back end is made. Pages are
shared as POSIX descriptors, one each. The owner opens no context: creating memory needs none, so
the HMM costs no memory of the device.

A driver that does not know read-only access for device memory is asked for read and write instead:
weights are then protected by nothing but the engine never writing them.
"""

from typing import Any

from ..core.errors import MappingError, MemoryPoolError
from .paged import PagedBackend


class CudaDriver:
    """`DriverCalls` of libcuda."""

    kind = "cuda"
    page_kind = "cuda"
    shares_fds = True

    def __init__(self) -> None:
        try:
            from cuda.bindings import driver  # type: ignore[import-not-found,unused-ignore]
        except ImportError as error:
            raise MappingError(
                f"cuda devices need cuda-bindings: {error}",
                next_step="pip install 'moectl[gpu]'",
            ) from error
        self._cu: Any = driver
        self._has_context: set[int] = set()
        self._call("cuInit", 0)

    def granularity(self, device: int) -> int:
        """The driver's smallest page: 2 MiB on current devices."""
        option = self._cu.CUmemAllocationGranularity_flags.CU_MEM_ALLOC_GRANULARITY_MINIMUM
        return int(self._call("cuMemGetAllocationGranularity", self._properties(device), option))

    def create(self, device: int, bytes: int) -> object:
        """cuMemCreate."""
        return self._call("cuMemCreate", bytes, self._properties(device), 0)

    def release(self, handle: object) -> None:
        """cuMemRelease."""
        self._call("cuMemRelease", handle)

    def export(self, handle: object) -> int:
        """A descriptor."""
        return int(self._call("cuMemExportToShareableHandle", handle, self._descriptor_type(), 0))

    def allow(self, exported: int, process: int) -> None:
        """Nothing: who has the descriptor may import it."""

    def import_(self, exported: int, device: int) -> object:
        """cuMemImportFromShareableHandle; the descriptor stays the caller's."""
        return self._call("cuMemImportFromShareableHandle", exported, self._descriptor_type())

    def process(self) -> int:
        """Processes need no name here."""
        return 0

    def reserve(self, bytes: int) -> int:
        """cuMemAddressReserve, aligned to the granularity."""
        return int(self._call("cuMemAddressReserve", bytes, 0, 0, 0))

    def free(self, address: int, bytes: int) -> None:
        """cuMemAddressFree."""
        self._call("cuMemAddressFree", address, bytes)

    def map(self, address: int, bytes: int, handle: object) -> None:
        """cuMemMap at offset 0."""
        self._call("cuMemMap", address, bytes, 0, handle, 0)

    def access(self, address: int, bytes: int, device: int, writable: bool) -> None:
        """cuMemSetAccess for the device itself."""
        flags = self._cu.CUmemAccess_flags
        wanted = [flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE]
        if not writable:
            wanted.insert(0, flags.CU_MEM_ACCESS_FLAGS_PROT_READ)
        for at, flag in enumerate(wanted):
            access = self._cu.CUmemAccessDesc()
            access.location.type = self._cu.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
            access.location.id = device
            access.flags = flag
            try:
                self._call("cuMemSetAccess", address, bytes, [access], 1)
                return
            except MappingError:
                if at + 1 == len(wanted):
                    raise

    def unmap(self, address: int, bytes: int) -> None:
        """cuMemUnmap."""
        self._call("cuMemUnmap", address, bytes)

    def copy(self, target: int, source: int, bytes: int) -> None:
        """cuMemcpyDtoD in the context of this thread, or in device 0's."""
        self.use(0)
        self._call("cuMemcpyDtoD", target, source, bytes)
        self._call("cuCtxSynchronize")

    def use(self, device: int) -> None:
        """Make the device's primary context this thread's, unless one is current."""
        current = self._call("cuCtxGetCurrent")
        if current is None or int(current) == 0:
            number = self._call("cuDeviceGet", device)
            context = self._call("cuDevicePrimaryCtxRetain", number)
            self._call("cuCtxSetCurrent", context)

    def _properties(self, device: int) -> Any:
        cu = self._cu
        properties = cu.CUmemAllocationProp()
        properties.type = cu.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
        properties.location.type = cu.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
        properties.location.id = device
        properties.requestedHandleTypes = self._descriptor_type()
        return properties

    def _descriptor_type(self) -> Any:
        return self._cu.CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR

    def _call(self, name: str, *arguments: Any) -> Any:
        error, *results = getattr(self._cu, name)(*arguments)
        if int(error) == int(self._cu.CUresult.CUDA_ERROR_OUT_OF_MEMORY):
            raise MemoryPoolError(f"{name}: the device is out of memory")
        if int(error) != int(self._cu.CUresult.CUDA_SUCCESS):
            raise MappingError(f"{name}: {getattr(error, 'name', error)}")
        return results[0] if results else None


class CudaBackend(PagedBackend):
    """`Backend` of NVIDIA GPUs."""

    def __init__(self) -> None:
        super().__init__(CudaDriver())

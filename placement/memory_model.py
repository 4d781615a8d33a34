"""How many bytes does a model hold on one device, and does that fit?

Pure arithmetic over plain numbers: no torch, no files, no clock. One device of a model holds three
parts, each padded to whole pages because a physical page has one owner:

    | shared weights | slots x (one expert, padded to pages) | KV |
      once per rank     experts_on(rank)                        memory.kvPerDevice

Bytes *moved* count the real bytes of an expert; bytes *held* count whole pages. Everything that
asks "does it fit" goes through this file, so that the API, the planner and the tests agree to the
byte.
"""

from dataclasses import dataclass

from ..core.plan import DeviceId


@dataclass(frozen=True, slots=True)
class Demand:
    """What a model needs per expert and per rank, in real bytes (not yet padded to pages)."""

    expert_counts: tuple[int, ...]  # [L] experts of every MoE layer
    expert_bytes: int  # one expert of one layer
    shared_bytes: int  # every weight that is not a routed expert; once per rank
    kv_bytes: int  # the KV budget of a device

    def __post_init__(self) -> None:
        if not self.expert_counts or min(self.expert_counts) < 1:
            raise ValueError(f"every MoE layer needs experts, got {self.expert_counts}")
        if self.expert_bytes < 1 or self.shared_bytes < 0 or self.kv_bytes < 0:
            raise ValueError("expert bytes must be positive, shared and KV bytes not negative")

    @property
    def expert_total(self) -> int:
        """Experts over all layers."""
        return sum(self.expert_counts)


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """A live device: its size, its page, and the bytes that other models hold on it."""

    device: DeviceId
    hbm_bytes: int
    page_bytes: int
    taken_bytes: int = 0

    @property
    def free_bytes(self) -> int:
        """What is left for this model."""
        return self.hbm_bytes - self.taken_bytes


def padded(byte_count: int, page_bytes: int) -> int:
    """The smallest multiple of the page that holds `byte_count`."""
    return -(-byte_count // page_bytes) * page_bytes


def held_bytes(demand: Demand, memory: DeviceMemory, slots: int) -> int:
    """Bytes of whole pages that the model holds on a device with `slots` expert copies."""
    page = memory.page_bytes
    fixed = padded(demand.shared_bytes, page) + padded(demand.kv_bytes, page)
    return fixed + slots * padded(demand.expert_bytes, page)


def slots_that_fit(demand: Demand, memory: DeviceMemory) -> int:
    """The most expert copies the device can hold beside shared weights and KV; 0 when none."""
    room = memory.free_bytes - held_bytes(demand, memory, 0)
    return max(0, room // padded(demand.expert_bytes, memory.page_bytes))


def least_slots_of_fullest(demand: Demand, width: int) -> int:
    """Copies on the fullest rank when `width` ranks share all experts as evenly as possible.

    Every layer gives each rank floor or ceil of its share, staggered, so totals differ by at most
    one.
    """
    return -(-demand.expert_total // width)


def fits_in_rest(demand: Demand, memories: tuple[DeviceMemory, ...]) -> bool:
    """Whether an even spread over exactly these devices fits, when nothing is moving."""
    slots = least_slots_of_fullest(demand, len(memories))
    return all(held_bytes(demand, memory, slots) <= memory.free_bytes for memory in memories)

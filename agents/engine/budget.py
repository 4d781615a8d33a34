"""What may a model count on at a device, whoever else is there? Its claims for the HMM's arbiter.

    MODEL/shared     guaranteed whole; never more
    MODEL/experts    guaranteed what the placement puts here, while it changes also what still stays
    MODEL/kv         `kvPerDevice` is guaranteed; what is left over is shared by weight
    MODEL/adapters   nothing guaranteed; a weight, for those that are loaded later

Asked for before anything is reserved, so that pages which KV gives back for experts to come cannot
be taken by another model in between; kept at COMMIT; cut to the new placement at RETIRE; gone with
the model. No torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from .release import owner_label

Claims = Mapping[str, tuple[int, float]]  # party -> (guarantee in pages, weight)

#: KV and adapters share by equal weights what nobody is guaranteed. Chosen: no measurement prefers
#: one. Shared weights and experts have none: they never want more than their guarantee.
ELASTIC_WEIGHT = 1.0


@dataclass(frozen=True, slots=True)
class Needs:
    """Bytes and slots of a model at one device."""

    shared_bytes: int
    kv_bytes: int
    slots: int
    pages_per_slot: int


def claims_of(model: str, needs: Needs, page_bytes: int) -> Claims:
    """The claims of a model at a device with pages of `page_bytes`."""
    guarantees = {
        "shared": -(-needs.shared_bytes // page_bytes),
        "experts": needs.slots * needs.pages_per_slot,
        "kv": -(-needs.kv_bytes // page_bytes),
        "adapters": 0,
    }
    elastic = ("kv", "adapters")
    return {
        owner_label(model, part): (pages, ELASTIC_WEIGHT if part in elastic else 0.0)
        for part, pages in guarantees.items()
    }

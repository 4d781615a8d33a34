"""What of a device goes back to the pool, when an epoch or a whole model is gone from it?

Everything is found by owner and by name in the HMM, never from memory of this process, so that both
functions can be repeated, run by a worker, its replacement or the agent, and end in the same state.
Whoever mapped the pages must have unmapped them. No torch: the agent uses this too.
"""

from ...memory.hmm.client import HmmClient
from ...memory.layout import ExpertLayout, experts_name, kv_name, shared_name


def owner_label(model: str, part: str) -> str:
    """The HMM's owner label of a model's "shared", "experts" or "kv" pages."""
    return f"{model}/{part}"


def retire_experts(hmm: HmmClient, model: str, device: str, epoch: int) -> int:
    """Free every expert page that the layout of `epoch` does not name; returns pages freed."""
    keep = experts_name(model, device, epoch)
    plain = hmm.get_layout(keep)
    if plain is None:  # not committed here: nothing of the older epochs may go
        return 0
    kept = set(ExpertLayout.from_json(plain).pages)
    owner = owner_label(model, "experts")
    gone = [page for page in hmm.pages_of(device, owner) if page not in kept]
    names = [name for name in hmm.layouts(_experts_prefix(model, device)) if name != keep]
    if gone:
        hmm.free(device, gone, owner, drop_layouts=names)
    for name in names:
        hmm.drop_layout(name)
    return len(gone)


def release_device(hmm: HmmClient, model: str, device: str) -> int:
    """Free everything that a model holds on a device; returns pages freed."""
    freed = 0
    for part, names in (
        ("experts", hmm.layouts(_experts_prefix(model, device))),
        ("kv", [kv_name(model, device)]),
        ("shared", [shared_name(model, device)]),
    ):
        owner = owner_label(model, part)
        pages = hmm.pages_of(device, owner)
        if pages:
            hmm.free(device, pages, owner, drop_layouts=names)
        for name in names:
            hmm.drop_layout(name)
        freed += len(pages)
    hmm.set_claims(device, {}, model)
    return freed


def _experts_prefix(model: str, device: str) -> str:
    return experts_name(model, device, 0)[:-1]

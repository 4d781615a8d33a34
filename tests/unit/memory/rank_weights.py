"""The plainest possible worker's memory: attach, load, prepare, commit, forfeit, retire.

The engine does the same in small pieces beside serving; here it is in one go, so that tests can
walk through every order of events, and be killed between any two of them.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from moectl.core.errors import MappingError
from moectl.memory.hmm.client import HmmClient, Reservation
from moectl.memory.layout import (
    ExpertKey,
    ExpertLayout,
    ExpertShape,
    SharedLayout,
    experts_name,
    respread,
    shared_name,
)
from moectl.memory.loader import CheckpointReader
from moectl.memory.tensors import expert_tensors, shared_tensors
from moectl.memory.window import Window

# Fills one expert: (key, gate_up [2I, H], down [H, I]).
FillExpert = Callable[[ExpertKey, torch.Tensor, torch.Tensor], None]


@dataclass(frozen=True, slots=True)
class RankPlace:
    """Whose pages: a model on a device of the node that `client` is connected to."""

    client: HmmClient
    model: str
    device: str

    @property
    def shared_owner(self) -> str:
        """The owner label of non-expert weights."""
        return f"{self.model}/shared"

    @property
    def experts_owner(self) -> str:
        """The owner label of experts."""
        return f"{self.model}/experts"


@dataclass(frozen=True, slots=True)
class SharedWeights:
    """Non-expert weights on their pages; tensors by state_dict name."""

    layout: SharedLayout
    window: Window
    tensors: Mapping[str, torch.Tensor]


@dataclass(slots=True)
class ExpertWeights:
    """Experts of one epoch on their pages: gate_up [S, 2I, H], down [S, H, I], S slots.

    `reservation` is open while the epoch is only prepared; `commit` or `forfeit` ends that.
    """

    layout: ExpertLayout
    window: Window
    gate_up: torch.Tensor
    down: torch.Tensor
    reservation: Reservation | None = None

    def commit(self, place: RankPlace, epoch: int) -> None:
        """The new pages belong to the model and the layout has its name, in one instant."""
        name = experts_name(place.model, place.device, epoch)
        if self.reservation is None:
            place.client.put_layout(name, self.layout.to_json())
        else:
            self.reservation.commit({name: self.layout.to_json()})

    def forfeit(self) -> None:
        """Undo a preparation: new pages are free again, kept ones are untouched."""
        self.window.close()
        if self.reservation is not None:
            self.reservation.forfeit()


def attach_shared(place: RankPlace) -> SharedWeights | None:
    """Map non-expert weights that are in memory, copying nothing; None when they are not."""
    plain = place.client.get_layout(shared_name(place.model, place.device))
    if plain is None:
        return None
    layout = SharedLayout.from_json(plain)
    handle = place.client.device(place.device)
    window = Window(handle, layout.page_count(handle.page_bytes) * handle.page_bytes, False)
    window.map(0, layout.pages)
    return SharedWeights(layout, window, shared_tensors(window, layout))


def load_shared(
    place: RankPlace, reader: CheckpointReader, wanted: Iterable[tuple[str, Sequence[int], str]]
) -> SharedWeights:
    """Load (name, shape, dtype) from the checkpoint, unless they are in memory already.

    Raises CheckpointError (pages are given back), PoolExhaustedError, and MappingError when other
    tensors than the wanted ones are in memory under this model's name.
    """
    layout = SharedLayout.pack(wanted)
    attached = attach_shared(place)
    if attached is not None:
        if attached.layout.places != layout.places:
            raise MappingError(
                f"{place.device} holds other weights of {place.model} than its config describes",
                next_step="delete the model and apply it again under another name",
            )
        return attached
    handle = place.client.device(place.device)
    count = layout.page_count(handle.page_bytes)
    with place.client.reserve(place.device, count, place.shared_owner) as reservation:
        layout = layout.with_pages(reservation.pages)
        with Window(handle, count * handle.page_bytes, writable=True) as window:
            window.map(0, reservation.pages)
            for name, tensor in shared_tensors(window, layout).items():
                reader.read_tensor_into(name, tensor)
        name = shared_name(place.model, place.device)
        reservation.commit({name: layout.to_json()})
    return _required(attach_shared(place), place)


def attach_experts(place: RankPlace, epoch: int) -> ExpertWeights | None:
    """Map the experts of an epoch that are in memory already; None when they are not."""
    plain = place.client.get_layout(experts_name(place.model, place.device, epoch))
    return None if plain is None else _mapped(place, ExpertLayout.from_json(plain), None)


def prepare_experts(
    place: RankPlace,
    old: ExpertLayout | None,
    shape: ExpertShape,
    wanted: Iterable[ExpertKey],
    fill: FillExpert,
) -> ExpertWeights:
    """The next epoch's experts in a shadow window; `old` serves on meanwhile.

    `fill` is called once per missing copy, in order, on pages of its own. The result is prefaulted
    and its reservation is open: `commit` or `forfeit` it. Raises what `fill` raises, or
    PoolExhaustedError; then everything is as before.
    """
    handle = place.client.device(place.device)
    change = respread(old, wanted)
    size = ExpertLayout(shape, handle.page_bytes).pages_per_slot
    reservation = None
    pages_of = dict(change.kept)
    try:
        if change.missing:
            needed = size * len(change.missing)
            reservation = place.client.reserve(place.device, needed, place.experts_owner)
            cut = range(0, needed, size)
            fresh = [reservation.pages[at : at + size] for at in cut]
            pages_of |= dict(zip(change.missing, fresh, strict=True))
            missing = {key: pages_of[key] for key in change.missing}
            _fill(place, ExpertLayout.build(shape, handle.page_bytes, missing), fill)
        layout = ExpertLayout.build(shape, handle.page_bytes, pages_of)
        return _mapped(place, layout, reservation)
    except BaseException:
        if reservation is not None:
            reservation.forfeit()
        raise


def retire_experts(
    place: RankPlace, old: ExpertLayout, old_epoch: int, new: ExpertLayout | None
) -> int:
    """Free the pages that only the old epoch used, and forget its layout; returns pages freed.

    Every process of the device must have left the old window by now. `new` None frees all of them.
    """
    kept = set(new.pages) if new is not None else set()
    freed = tuple(page for page in old.pages if page not in kept)
    name = experts_name(place.model, place.device, old_epoch)
    place.client.free(place.device, freed, place.experts_owner, drop_layouts=[name])
    return len(freed)


def _fill(place: RankPlace, layout: ExpertLayout, fill: FillExpert) -> None:
    handle = place.client.device(place.device)
    with Window(handle, layout.bytes, writable=True) as window:
        window.map(0, layout.pages)
        gate_up, down = expert_tensors(window, layout)
        for key, slot in sorted(layout.slots.items()):
            fill(key, gate_up[slot], down[slot])


def _mapped(
    place: RankPlace, layout: ExpertLayout, reservation: Reservation | None
) -> ExpertWeights:
    handle = place.client.device(place.device)
    window = Window(handle, max(layout.bytes, handle.page_bytes), writable=False)
    window.map(0, layout.pages)
    window.prefault(0, layout.bytes)
    return ExpertWeights(layout, window, *expert_tensors(window, layout), reservation)


def _required(weights: SharedWeights | None, place: RankPlace) -> SharedWeights:
    if weights is None:
        raise MappingError(f"the layout of {place.model} on {place.device} vanished while loading")
    return weights

"""Where do the bytes of a transition come from, for one device? Peers' pages, other nodes, files.

`Sources` turns the record's steps into acts on windows of this device: memcpy from a device of this
node (its pages are found in the HMM's layouts, so the worker that filled them need not live), a
receive from another node, or the checkpoint. What a step says is preferred; what cannot be found
where the step says is read from the checkpoint, which always has it.
"""

from collections.abc import Callable, Mapping

import torch

from ...core.errors import CheckpointError, WorkerError
from ...core.plan import DeviceId, Part, Step, StepKind
from ...core.records import TransitionRecord
from ...memory.bulk import ExpertLoad, Loaded
from ...memory.copy import copy_pages
from ...memory.hmm.client import HmmClient
from ...memory.layout import ExpertLayout, SharedLayout, experts_name, shared_name
from ...memory.loader import CheckpointReader, ExpertStyle
from ...memory.tensors import shared_tensors, tensor_at
from ...memory.window import Window
from .context import WorkerContext
from .loading import SharedLoad, load_rank

ExpertKey = tuple[int, int]


class Sources:
    """Acts of one transition at one device. Used by one thread at a time; close it when done."""

    def __init__(self, context: WorkerContext, hmm: HmmClient, record: TransitionRecord) -> None:
        self._context, self._hmm, self._record = context, hmm, record
        self._layouts: dict[DeviceId, ExpertLayout | None] = {}
        self._reader: CheckpointReader | None = None
        self._loaded: set[ExpertKey] = set()  # came from the checkpoint already, all at once
        self._has_shared = False
        mine = [step for step in record.steps if step.target == context.device]
        self._expert_steps: Mapping[ExpertKey, Step] = {
            (step.layer, step.expert): step
            for step in mine
            if step.part is Part.EXPERT and step.kind in (StepKind.COPY, StepKind.LOAD)
        }
        self.shared_step = next((step for step in mine if step.part is Part.SHARED), None)

    def near_source(self, step: Step | None) -> DeviceId | None:
        """The device of this node that a step copies from, or None."""
        if step is None or step.kind is not StepKind.COPY or step.crosses_node:
            return None
        return step.source

    def expert_step(self, key: ExpertKey) -> Step | None:
        """The step that brings an expert copy here, or None."""
        return self._expert_steps.get(key)

    def fill_expert(self, key: ExpertKey, target: Window, offset: int) -> None:
        """Copy or load one expert into a writable window, unless it was loaded already."""
        if key in self._loaded:
            return
        source = self.near_source(self.expert_step(key))
        layout = self.experts_on(source) if source is not None else None
        if source is None or layout is None or key not in layout.slots:
            self._load_expert(key, target, offset)
            return
        handle = self._hmm.device(source.device)
        size = self._context.expert_shape.bytes
        copy_pages(handle, layout.pages_of(*key), target, offset, size)

    def fill_shared(self, layout: SharedLayout, target: Window) -> bool:
        """Copy the shared weights from a device of this node; False when there is none to copy.

        True also when they are there already.
        """
        if self._has_shared:
            return True
        source = self.near_source(self.shared_step)
        if source is None:
            return False
        plain = self._hmm.get_layout(shared_name(self._context.launch.model, source.device))
        if plain is None:
            return False
        held = SharedLayout.from_json(plain)
        self._context.check_layout(held)
        copy_pages(self._hmm.device(source.device), held.pages, target, 0, layout.bytes)
        return True

    def load_shared_tensor(self, name: str, layout: SharedLayout, target: Window) -> None:
        """Read one shared tensor from the checkpoint into its place."""
        self.reader().read_tensor_into(name, shared_tensors(target, layout)[name])

    def experts_on(self, device: DeviceId) -> ExpertLayout | None:
        """The expert layout of a device of this node in the old epoch, or None."""
        if device not in self._layouts:
            self._layouts[device] = self._read_layout(device)
        return self._layouts[device]

    def outgoing(self, step: Step, hmm: HmmClient) -> tuple[Window, torch.Tensor]:
        """What a cross-node step sends from here: a window (close it after) and its bytes."""
        handle = hmm.device(self._context.launch.device)
        pages, size = self._held(step)
        window = Window(handle, len(pages) * handle.page_bytes, writable=False)
        window.map(0, pages)
        return window, bytes_at(window, 0, size)

    def reader(self) -> CheckpointReader:
        """The checkpoint, opened at first use."""
        if self._reader is None:
            self._reader = CheckpointReader(self._context.launch.model_folder)
        return self._reader

    def close(self) -> None:
        """Close files."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def _held(self, step: Step) -> tuple[tuple[int, ...], int]:
        me = self._context.device
        if step.part is Part.SHARED:
            plain = self._hmm.get_layout(shared_name(self._context.launch.model, me.device))
            if plain is None:
                raise WorkerError(f"{me} is to send shared weights that it does not hold")
            layout = SharedLayout.from_json(plain)
            return layout.pages, layout.bytes
        experts = self.experts_on(me)
        if experts is None or (step.layer, step.expert) not in experts.slots:
            raise WorkerError(
                f"{me} is to send expert {step.expert} of layer {step.layer}, which it lacks"
            )
        return experts.pages_of(step.layer, step.expert), self._context.expert_shape.bytes

    def _read_layout(self, device: DeviceId) -> ExpertLayout | None:
        old = self._record.old
        if old is None or device.node != self._context.launch.node:
            return None
        name = experts_name(self._context.launch.model, device.device, old.epoch)
        plain = self._hmm.get_layout(name)
        layout = ExpertLayout.from_json(plain) if plain is not None else None
        if layout is not None and layout.shape != self._context.expert_shape:
            raise CheckpointError(f"{device} holds experts of another shape under {name}")
        return layout

    def _load_expert(self, key: ExpertKey, target: Window, offset: int) -> None:
        self.expert_load(key, target, offset).run(self.reader())

    def expert_load(self, key: ExpertKey, target: Window, offset: int) -> ExpertLoad:
        """The reading of one expert from the checkpoint into a writable window."""
        context, form = self._context, self._context.shape.expert
        parts = {
            name: tensor_at(target, offset + place.offset, place.shape, context.expert_dtype)
            for name, place in context.expert_shape.places.items()
        }
        style = ExpertStyle(
            form.is_transposed,
            form.is_interleaved,
            parts.get("gate_up_bias"),
            parts.get("down_bias"),
        )
        layer, expert = context.shape.moe_layers[key[0]], key[1]
        return ExpertLoad(layer, expert, parts["gate_up"], parts["down"], style)

    def is_loaded_first(self, key: ExpertKey) -> bool:
        """Whether the record says that an expert comes from the checkpoint."""
        step = self.expert_step(key)
        return step is not None and step.kind is StepKind.LOAD

    def load(
        self,
        experts: Mapping[ExpertKey, ExpertLoad],
        shared: SharedLoad | None,
        should_stop: Callable[[], bool],
    ) -> Loaded:
        """Read these now, with several readers; filling passes them by afterwards."""
        loads = list(experts.values())
        loaded = load_rank(self._context.launch.model_folder, loads, shared, should_stop)
        self._loaded |= experts.keys()
        self._has_shared = shared is not None
        return loaded


def bytes_at(window: Window, offset: int, size: int) -> torch.Tensor:
    """A range of a window as uint8."""
    return tensor_at(window, offset, (size,), torch.uint8)

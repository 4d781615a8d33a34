"""What does every part of a worker need to know, and never changes while it lives?

The orders it was started with, the sizes of its model and its device, and how it reaches the HMM.
Plain data; opens nothing but HMM connections when asked to.
"""

import contextlib
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ...core.checkpoint import read_config
from ...core.dtypes import checkpoint_dtype, expert_dtype
from ...core.errors import (
    CheckpointError,
    MappingError,
    MemoryPoolError,
    PoolExhaustedError,
    WorkerError,
)
from ...core.plan import DeviceId
from ...core.priority import SessionPriority
from ...memory.hmm.budget import ABOVE
from ...memory.hmm.client import HmmClient
from ...memory.hmm.settled import settled_client
from ...memory.layout import ExpertKey, ExpertLayout, ExpertShape, SharedLayout, respread
from ...memory.tensors import torch_dtype
from ..launch.orders import WorkerLaunch
from .budget import Claims, Needs, claims_of
from .model import ModelShape, model_shape, shared_tensor_specs
from .release import owner_label
from .schedule import Limits

#: A queue of four times the running requests: enough to never idle, short enough that a client
#: hears "full" before it would time out. The contract of the data protocol.
QUEUE_FACTOR = 4

#: Deadline of one HMM call. Its answers take microseconds; a machine that swaps takes seconds.
HMM_DEADLINE_S = 10.0

#: How long a connection waits for an HMM that is being restarted: it is ready in 0.1 s after the
#: agent has noticed, seconds on a busy machine. Below PREPARE's own deadline by far.
HMM_RESTART_S = 10.0
HMM_RETRY_S = 0.05

#: How long a model without room waits for KV of others: agents look every second, and blocks are
#: moved between two steps.
RECLAIM_S = 5.0
RECLAIM_RETRY_S = 0.1


@dataclass(frozen=True)
class WorkerContext:
    """A worker's fixed surroundings."""

    launch: WorkerLaunch
    template: Any  # the model without weights, see template.py
    shape: ModelShape
    dtype: torch.dtype  # of shared weights, activations and KV
    limits: Limits
    kv_bytes: int
    expert_dtype: torch.dtype  # of routed experts in their pages
    session: SessionPriority = field(default_factory=SessionPriority)  # low until this rank serves

    @classmethod
    def build(cls, launch: WorkerLaunch, template: Any) -> "WorkerContext":
        """From orders and a template. Raises WorkerError when the spec lacks a field."""
        shape = model_shape(template)
        try:
            engine, kv_bytes = (
                launch.model_spec["engine"],
                launch.model_spec["memory"]["kvPerDevice"],
            )
            limits = Limits(
                max_batch_tokens=int(engine["maxBatchTokens"]),
                max_requests=int(engine["maxRequests"]),
                prefill_chunk=int(engine["prefillChunk"]),
                block_tokens=int(engine["kvBlockTokens"]),
                max_context=min(
                    engine.get("maxContext") or shape.context_tokens, shape.context_tokens
                ),
                max_queued=int(engine["maxRequests"]) * QUEUE_FACTOR,
                prefix_cache=bool(engine.get("prefixCache", True)),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise WorkerError(f"model {launch.model}: its spec lacks {error}") from error
        name = expert_dtype(
            str(engine.get("dtype", "auto")),
            str(launch.model_spec.get("precision", "")),
            checkpoint_dtype(read_config(Path(launch.model_folder))),
        )
        held = torch_dtype(name)
        return cls(launch, template, shape, template.dtype, limits, int(kv_bytes), held)

    def with_spec(self, model_spec: dict[str, Any]) -> "WorkerContext":
        """The same worker with the engine settings of another spec: those of a new epoch.

        Raises WorkerError when the spec lays memory out in another way, which a worker cannot take.
        """
        changed = self.build(replace(self.launch, model_spec=model_spec), self.template)
        for name in ("block_tokens", "max_context"):
            old, new = getattr(self.limits, name), getattr(changed.limits, name)
            if old != new:
                raise WorkerError(
                    f"{self.device} serves with {name} {old}: a running worker cannot take {new}",
                    next_step="delete the model and apply it again",
                )
        return replace(changed, session=self.session)

    @property
    def is_reproducible(self) -> bool:
        """Whether the spec asks for rows that keep their bits."""
        return self.launch.model_spec.get("precision") == "reproducible"

    @property
    def threads(self) -> int:
        """Threads of arithmetic that the spec gives to this worker."""
        return int(self.launch.model_spec["engine"].get("threads", 1))

    @property
    def device(self) -> DeviceId:
        """The device that this worker fills."""
        return DeviceId(self.launch.node, self.launch.device)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row of activations."""
        return self.shape.hidden * self.dtype.itemsize

    @property
    def expert_shape(self) -> ExpertShape:
        """What one slot holds."""
        form = self.shape.expert
        return ExpertShape(form.hidden, form.inner, dtype_name(self.expert_dtype), form.has_bias)

    def owner(self, part: str) -> str:
        """The HMM's owner label of this model's "shared", "experts" or "kv" pages."""
        return owner_label(self.launch.model, part)

    def connect(self, purpose: str) -> HmmClient:
        """A connection of its own to the node's HMM: what it reserves dies with it.

        An HMM that was killed is back within a second, and workers serve on: a PREPARE that
        falls into that second waits for it, and for the memory that workers hand back, instead of
        being forfeited. Never called by the engine's thread.
        """
        name = f"{self.launch.model}@{self.device} {purpose}"[:200]
        limit_s = time.monotonic() + HMM_RESTART_S
        while True:
            try:
                return settled_client(self.launch.hmm_socket, name, HMM_DEADLINE_S)
            except MemoryPoolError:
                if time.monotonic() >= limit_s:
                    raise
                time.sleep(HMM_RETRY_S)

    def shared_layout(self) -> SharedLayout:
        """Where the weights that are no routed experts stand; the same on every rank."""
        specs = shared_tensor_specs(self.template)
        return SharedLayout.pack(
            (name, dims, dtype_name(self.dtype)) for name, dims in specs.items()
        )

    def kv_block_bytes(self) -> int:
        """Bytes of one KV block."""
        return torch.Size(self.shape.kv_block_shape(self.limits.block_tokens)).numel() * (
            self.dtype.itemsize
        )

    def claims(self, page_bytes: int, slots: int) -> Claims:
        """What this model may count on at this device, with `slots` experts here."""
        each = ExpertLayout(self.expert_shape, page_bytes).pages_per_slot
        needs = Needs(self.shared_layout().bytes, self.kv_bytes, slots, each)
        return claims_of(self.launch.model, needs, page_bytes)

    def ask_claims(
        self, hmm: HmmClient, old: ExpertLayout | None, wanted: Iterable[ExpertKey]
    ) -> None:
        """Count on what a transition needs here at its peak: old experts stay until RETIRE.

        KV of another model that has grown above its share gets RECLAIM_S to give pages back. Raises
        PoolExhaustedError, which names the holders, when there is no room for that.
        """
        slots = len(respread(old, wanted).missing) + (len(old.slots) if old is not None else 0)
        device = self.launch.device
        claims = self.claims(hmm.device(device).page_bytes, slots)
        limit_s = time.monotonic() + RECLAIM_S
        while True:
            try:
                hmm.ask_claims(device, claims)
                return
            except PoolExhaustedError as error:
                can_wait = any(name.endswith(ABOVE) for name in error.holders)
                if not can_wait or time.monotonic() >= limit_s:
                    raise
            time.sleep(RECLAIM_RETRY_S)

    def keep_claims(self, hmm: HmmClient) -> None:
        """What was asked for lasts from now on.

        An HMM that was killed since does not know of it: then RETIRE tells it.
        """
        with contextlib.suppress(MappingError):
            hmm.keep_claims(self.launch.device)

    def check_layout(self, layout: SharedLayout) -> None:
        """Raise CheckpointError unless a stored layout is of this model."""
        if layout.places != self.shared_layout().places:
            raise CheckpointError(
                f"the weights that the HMM holds for {self.launch.model} on {self.device} are not "
                "those of this model",
                next_step="delete the model and apply it again, or give it another name",
            )


def dtype_name(dtype: torch.dtype) -> str:
    """torch's name of a dtype, as layouts write it."""
    return str(dtype).removeprefix("torch.")

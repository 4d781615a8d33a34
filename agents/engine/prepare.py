"""How does a worker get ready for the next epoch while the present one serves?

A `Preparation` is one transition at one device: its group, its expert window and, where the worker
joins, its shared weights and KV. Everything is reserved on a connection of its own to the HMM, so
that a forfeit, or the death of this process, gives all of it back. `commit_pages` makes it lasting;
the engine then takes `epoch`.

Threads: `run` is called on a helper thread; groups meet on threads of their own (mostly waiting),
heavy work runs gently; `cancel` may come from any thread.
"""

import contextlib
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from concurrent.futures import Future
from typing import Any

import torch

from ...core.errors import MoectlError, WorkerError
from ...core.plan import Part, Step
from ...core.priority import be_gentle, be_idle
from ...core.records import TransitionRecord
from ...memory.hmm.client import HmmClient
from ...memory.layout import ExpertLayout, experts_name, respread
from . import transfer as transfers
from .attach import Attachment
from .comm.base import Exchange
from .comm.gloo import abandon_meeting
from .comm.group import GroupPlan, form
from .context import WorkerContext
from .creation import load_new
from .dispatch import DistributedMoe, exchange_bytes_max
from .engine import Engine
from .epoch import Epoch
from .gently import ESCALATE_S, Piece, Work, beside, run_gently
from .kv_room import KvRoom
from .lent import tell_lent, wait_lent
from .loading import loading_name
from .shadow import Shadow
from .sources import Sources
from .transfer import Transfer
from .warm_up import warm_up

#: The least time a preparation gets, when clocks disagree about the record's deadline.
DEADLINE_S_MIN = 5.0
#: How often a meeting that is to end is looked for.
ABANDON_S = 0.05


class Preparation:
    """One transition at this device."""

    def __init__(self, context: WorkerContext, record: TransitionRecord, is_attached: bool) -> None:
        # Engine settings are those of the transition: they come into force with its epoch.
        self.context = context.with_spec(record.model_spec) if record.model_spec else context
        self.record = record
        self.rank = record.new.rank_of(context.device)
        self.epoch: Epoch | None = None  # None for a device that leaves
        self.figures: dict[str, float] = {}
        self.shadow: Shadow | None = None
        self.attachment: Attachment | None = None
        self.hmm: HmmClient | None = None
        self.room: KvRoom | None = None  # of the engine that serves here already
        self.kv_pages_given = 0  # what a forfeit gives back to KV
        self._is_attached = is_attached
        self._group = self._group_plan() if self.rank is not None else None
        self._exchange: Exchange | None = None
        self._engine: Engine | None = None  # of a rank that joins
        self._transfer: Transfer | None = None
        self._sources: Sources | None = None
        self._work: Work | None = None
        self._marks: dict[str, float] = {}  # figure -> seconds since PREPARE began
        self._started = 0.0
        self._cancelled = threading.Event()
        self._quiet = threading.Event()  # set while nothing of `run` is going on
        self._quiet.set()
        self._is_closed = False
        self._loaded_bytes = 0  # read from the checkpoint

    @property
    def is_cancelled(self) -> bool:
        """Whether a forfeit has been asked for."""
        return self._cancelled.is_set()

    def run(self) -> None:
        """Prepare; then `epoch` and `figures` are set. Raises MoectlError: then forfeit it."""
        self._quiet.clear()
        try:
            self._run()
            # Before COMMIT comes: from then on every other rank waits for what this one does.
            if not self.context.session.restore():
                raise WorkerError("the kernel keeps this worker's session below the others")
        finally:
            self._quiet.set()

    def cancel(self) -> None:
        """Make `run` end soon with an error; harmless when it has ended."""
        self._cancelled.set()
        if self._work is not None:
            self._work.cancel()
        if self._transfer is not None:
            self._transfer.abort("forfeited")
        if not self._quiet.is_set() and self.record.store_address:
            abandon_meeting(self.record.store_address)

    def commit_pages(self) -> None:
        """Make reserved pages this model's, each in the same instant as the layout naming them.

        Raises MoectlError when the HMM is gone; the mapped pages can be served from all the same.
        """
        if self.hmm is None or self.shadow is None:
            return
        launch = self.context.launch
        if self.attachment is not None:
            for reservation, named in self.attachment.reservations:
                reservation.commit(named)
        name = experts_name(launch.model, launch.device, self.record.new.epoch)
        layouts = {name: self.shadow.layout.to_json()}
        if self.shadow.reservation is not None:
            self.shadow.reservation.commit(layouts)
        else:
            self.hmm.put_layout(name, layouts[name])
        self.context.keep_claims(self.hmm)

    def forget_meeting(self) -> None:
        """All ranks have met: nothing but the descriptors is needed any more."""
        if self._transfer is not None:
            self._transfer.close()
        if self.hmm is not None and self._group is not None:
            self.hmm.drop_channel(self._group.channel_name)
            launch = self.context.launch
            self.hmm.drop_layout(
                loading_name(launch.model, launch.device, self.record.operation_id)
            )

    def forget_epoch(self) -> None:
        """The exchange's memory goes with the last view of it."""
        self.epoch = self._exchange = self._engine = None

    def forfeit(self) -> None:
        """Give everything back; idempotent. Waits for a running `run` to end."""
        self.cancel()
        self._quiet.wait()
        if self._is_closed:
            return
        self._is_closed = True
        if self._exchange is not None:
            self._exchange.close()
        with contextlib.suppress(MoectlError):  # the HMM is gone, and the channel with it
            self.forget_meeting()
        self.close_windows()

    def close_windows(self) -> None:
        """Unmap, and end the HMM connection: what was not committed is free again."""
        for part in (self.shadow, self.attachment):
            if part is not None:
                part.close()
        if self.hmm is not None:
            self.hmm.close()

    # ---- inside run ------------------------------------------------------------------------------

    def _run(self) -> None:
        started = self._started = time.monotonic()
        deadline_s = max(self.record.deadline_at - time.time(), DEADLINE_S_MIN)
        until = started + deadline_s
        self.hmm = self.context.connect(f"epoch {self.record.new.epoch}")
        self._sources = Sources(self.context, self.hmm, self.record)
        group = beside(lambda: self._form_group(deadline_s), "meet")
        transfer = beside(lambda: self._join_transfer(deadline_s), "meet")
        try:
            session = self.context.session
            # Beside an engine an idle thread could stop dead with the interpreter lock in hand; it
            # comes up again only with the session.
            give_way = be_idle if session.is_lowered and not self._is_attached else be_gentle
            if not self.record.is_gentle:
                session.restore()
            self._work = Work(self._pieces(transfer), give_way)
            if self.is_cancelled:
                self._work.cancel()
            escalate_s = ESCALATE_S if self.record.is_gentle else 0.0
            run_gently(self._work, until - time.monotonic(), escalate_s, session)
            copied = time.monotonic()
            self._check_cancelled()
            self._exchange = group.result(max(until - time.monotonic(), 0.1))
            self._mark("group")
            self._check_cancelled()
            self._make_epoch()
        except TimeoutError as error:
            raise WorkerError("the next epoch's group did not form in time") from error
        finally:
            self._settle(group, transfer)
        self._note_figures(started, copied)

    def _settle(self, group: "Future[Any]", transfer: "Future[Any]") -> None:
        """Wait for the meetings, so that what they made is known to `forfeit`."""
        for future in (group, transfer):
            while not future.done():  # again and again: it may not have called the store yet
                abandon_meeting(self.record.store_address)
                futures.wait([future], ABANDON_S)
        if self._exchange is None and group.exception() is None:
            self._exchange = group.result()
        if self._transfer is None and transfer.exception() is None:
            self._transfer = transfer.result()
        if self._sources is not None:
            self._sources.close()

    def _group_plan(self) -> GroupPlan:
        assert self.rank is not None
        context, new = self.context, self.record.new
        rows, row_bytes = context.limits.max_batch_tokens, context.row_bytes
        experts = context.shape.experts_per_token
        return GroupPlan(
            self.record.operation_id,
            new,
            self.rank,
            exchange_bytes_max(rows, new.width, experts, row_bytes),
            self.record.store_address,
            context.launch.node_address,
            max(self.record.deadline_at - time.time(), DEADLINE_S_MIN),
        )

    def _form_group(self, deadline_s: float) -> Exchange | None:
        if self._group is None:
            return None
        assert self.hmm is not None
        return form(self._group, self.hmm)

    def _join_transfer(self, deadline_s: float) -> Transfer | None:
        if self.context.device not in transfers.members(self.record.steps):
            return None
        return Transfer.join(
            self.record.store_address,
            f"{self.record.operation_id}/transfer",
            self.context.device,
            self.record.steps,
            self.context.launch.node_address,
            deadline_s,
        )

    def _reserve(self) -> None:
        assert self.hmm is not None and self._sources is not None
        if self.rank is None:
            if self.room is not None:
                self.kv_pages_given = self.room.lend(self.hmm)
            tell_lent(self.record, self.context.device)
            return
        old = self._sources.experts_on(self.context.device)
        self.context.ask_claims(self.hmm, old, self.record.new.experts_on(self.rank))
        if not self._is_attached:
            self.attachment = Attachment(self.context, self.hmm)
        self._make_room(old)
        self.shadow = Shadow(self.context, self.hmm, self.record.new, self.rank, old)

    def _make_room(self, old: ExpertLayout | None) -> None:
        """KV that grew into expert pages gives back as many as experts now come.

        Where it has less, the fleet gets no larger either: ranks that leave lend theirs first.
        """
        assert self.hmm is not None and self.rank is not None
        if self.room is None:
            return
        coming = respread(old, self.record.new.experts_on(self.rank)).missing
        page = self.hmm.device(self.context.launch.device).page_bytes
        each = ExpertLayout(self.context.expert_shape, page).pages_per_slot
        self.kv_pages_given = self.room.give_back(self.hmm, len(coming) * each)
        if self.kv_pages_given < len(coming) * each:
            wait_lent(self.record)

    def _pieces(self, transfer: "Future[Transfer | None]") -> Iterator[Piece]:
        assert self._sources is not None
        yield self._reserve
        self._mark("reserve")
        yield self._load
        if self.attachment is not None:
            yield from self.attachment.fill_pieces(self._sources)
        if self.shadow is not None:
            yield from self.shadow.fill_pieces(self._sources)
        self._mark("fill")
        yield from self._transfer_pieces(transfer)
        self._mark("transfer")
        if self.attachment is not None:
            self.attachment.end_filling()
            yield from self.attachment.map_pieces()
        if self.shadow is not None:
            self.shadow.end_filling()
            yield from self.shadow.map_pieces()
        self._mark("map")
        if self.attachment is not None and self.shadow is not None:
            yield self._build_engine
            yield self._warm_up
        self._mark("engine")

    def _load(self) -> None:
        assert self._sources is not None
        parts = self.attachment, self.shadow
        read = load_new(parts, self._sources, self.record, lambda: self.is_cancelled)
        self._loaded_bytes = read

    def _transfer_pieces(self, transfer: "Future[Transfer | None]") -> Iterator[Piece]:
        if self.context.device not in transfers.members(self.record.steps):
            return

        def join() -> None:
            self._transfer = transfer.result()

        yield join
        for step in transfers.crossing_steps(self.record.steps):
            if step.source == self.context.device:
                yield lambda step=step: self._send(step)  # type: ignore[misc]
            elif step.target == self.context.device:
                yield lambda step=step: self._receive(step)  # type: ignore[misc]

    def _send(self, step: Step) -> None:
        assert self._sources is not None and self._transfer is not None and self.hmm is not None
        window, data = self._sources.outgoing(step, self.hmm)
        try:
            self._transfer.send(data, step.target)
        finally:
            window.close()

    def _receive(self, step: Step) -> None:
        assert self._transfer is not None and step.source is not None
        place = None
        if step.part is Part.SHARED:
            place = self.attachment.incoming() if self.attachment is not None else None
        elif self.shadow is not None:
            place = self.shadow.incoming((step.layer, step.expert))
        if place is None:  # it is here already: the sender cannot know, so take it and drop it
            place = torch.empty(self._bytes_of(step), dtype=torch.uint8)
        self._transfer.receive(place, step.source)

    def _bytes_of(self, step: Step) -> int:
        if step.part is Part.SHARED:
            return self.context.shared_layout().bytes
        return self.context.expert_shape.bytes

    def _make_epoch(self) -> None:
        if self.rank is None or self.shadow is None:
            return
        assert self._exchange is not None
        moe = DistributedMoe(self._exchange, self.shadow.slots(), self.record.new.owners)
        self.epoch = Epoch(
            self.record.new.epoch,
            self.record.operation_id,
            self.record.new,
            self.rank,
            self._exchange,
            moe,
            self._engine,
            self.context.limits,
            self.context.threads,
        )

    def _build_engine(self) -> None:
        assert self.attachment is not None
        self._engine = self.attachment.build_engine()

    def _warm_up(self) -> None:
        assert self._engine is not None and self.shadow is not None
        warm_up(self._engine, self.shadow.slots())

    def _mark(self, stage: str) -> None:
        """Note when a stage of the preparation was over, for who asks where the time went."""
        self._marks[f"{stage}_at_s"] = time.monotonic() - self._started

    def _check_cancelled(self) -> None:
        if self.is_cancelled:
            raise WorkerError(f"operation {self.record.operation_id} was forfeited")

    def _note_figures(self, started: float, copied: float) -> None:
        one = self.context.expert_shape.bytes
        missing = len(self.shadow.missing) if self.shadow is not None else 0
        shared = self.attachment
        incoming = [
            step
            for step in transfers.crossing_steps(self.record.steps)
            if step.target == self.context.device
        ]
        self.figures = {
            "prepare_s": time.monotonic() - started,
            "copy_s": copied - started,
            "bytes_copied": float(missing * one),
            "bytes_read": float(self._loaded_bytes),
            "shared_bytes": float(shared.shared.bytes if shared and shared.is_shared_new else 0),
            "bytes_sent": float(self._transfer.bytes_sent if self._transfer else 0),
            "steps_cross_node": float(len(incoming)),
            **self._marks,
        }
        if shared is not None:
            self.figures["kv_blocks"] = float(shared.kv_blocks)

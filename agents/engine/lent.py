"""When does a rank take pages that its own KV cannot give? When the ranks that leave have lent.

Ranks that leave free KV that they can never fill (`KvRoom.lend`), so that a fleet holds hardly more
during a change than before it. That lasts one step of their engines; a rank that reserved at once
would be ahead of them, and the peak a sum of both. So it waits for their word in the meeting's
store, about as long as the other ranks wait for their own KV; and not for ever: memory that is free
on its own device is its by right.
"""

import contextlib
from datetime import timedelta

from torch import distributed

from ...core.plan import DeviceId, TransitionKind, leaving_devices
from ...core.records import TransitionRecord
from .comm.gloo import Rendezvous

#: Chosen: a step of an engine with long prompts; their word comes after one. A rank that fails to
#: lend ends the preparation, and the wait with it.
WAIT_S = 5.0


def lenders(record: TransitionRecord) -> tuple[DeviceId, ...]:
    """Devices whose ranks serve and leave with this change: none at a heal, where they are gone."""
    is_heal = record.kind is TransitionKind.HEAL
    return () if is_heal else leaving_devices(record.old, record.new)


def tell_lent(record: TransitionRecord, device: DeviceId) -> None:
    """This rank has lent what it can; nobody is kept waiting when the word does not get through."""
    # Every failure of torch's store is a RuntimeError; ValueError: the operation has no store.
    with contextlib.suppress(RuntimeError, ValueError):
        _store(record).set(str(device), "lent")


def wait_lent(record: TransitionRecord) -> bool:
    """Wait until every rank that leaves has lent; False when that took longer than `WAIT_S`."""
    names = [str(device) for device in lenders(record)]
    try:
        if names:
            _store(record).wait(names, timedelta(seconds=WAIT_S))
    except RuntimeError:
        return False
    return True


def _store(record: TransitionRecord) -> distributed.PrefixStore:
    """The operation's own part of the store that its groups meet at; no rank of anything here."""
    meeting = Rendezvous(record.store_address, f"{record.operation_id}/lent", 0, 1, "")
    return meeting.open_store(timedelta(seconds=WAIT_S))

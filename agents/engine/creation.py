"""How does a new model get its weights? All of a rank's at once, before anybody serves.

Only at a creation: nobody has to be spared, so one long piece of work is fine.
"""

from collections.abc import Callable

from ...core.records import TransitionRecord
from .attach import Attachment
from .shadow import Shadow
from .sources import Sources


def load_new(
    parts: tuple[Attachment | None, Shadow | None],
    sources: Sources,
    record: TransitionRecord,
    should_stop: Callable[[], bool],
) -> int:
    """Read what the record says comes from the checkpoint; returns the bytes read by this rank.

    Raises CheckpointError naming file and tensor, WorkerError when a rank of the node fails.
    """
    attachment, shadow = parts
    if record.old is not None or attachment is None or shadow is None:
        return 0
    shared = attachment.shared_load(record, should_stop)
    return sources.load(shadow.loads(sources), shared, should_stop).bytes_read

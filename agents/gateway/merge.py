"""How are several choices of one request served at once? Their pieces merged in arrival order.

Each choice runs in its own task and waits when the reader is behind (the queue is bounded), so back
pressure reaches the worker's mailbox. Leaving the iterator ends every task: nothing runs on for a
client that is gone.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence

from .choices import Choice, Piece

QUEUE_PIECES_MAX = 16

Step = tuple[Choice, Piece | None]  # text as it comes, and None once when the choice is over


async def merged(choices: Sequence[Choice]) -> AsyncGenerator[Step, None]:
    """The pieces of all choices; raises the first error of any."""
    if len(choices) == 1:  # the common case needs no task
        async with contextlib.aclosing(choices[0].run()) as pieces:
            async for piece in pieces:
                yield choices[0], piece
        yield choices[0], None
        return
    queue: asyncio.Queue[Step | Exception] = asyncio.Queue(QUEUE_PIECES_MAX)
    loop = asyncio.get_running_loop()
    tasks = [loop.create_task(_pump(choice, queue)) for choice in choices]
    try:
        open_count = len(choices)
        while open_count:
            item = await queue.get()
            if isinstance(item, Exception):
                raise item
            open_count -= item[1] is None
            yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _pump(choice: Choice, queue: "asyncio.Queue[Step | Exception]") -> None:
    try:
        async with contextlib.aclosing(choice.run()) as pieces:
            async for piece in pieces:
                await queue.put((choice, piece))
        await queue.put((choice, None))
    except Exception as error:  # the task's top: the reader raises it
        await queue.put(error)

"""Why does a process that waits most of its life look through all that it imported? It need not.

A collector that starts a full pass in the middle of a change walks every object of every library:
tens of milliseconds, while others wait for this process and its core is wanted for serving.
Standard library only.
"""

import gc


def settle() -> None:
    """What is there now lasts as long as the process: collect once, and never look at it again."""
    gc.collect()
    gc.freeze()

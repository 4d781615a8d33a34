"""What do the conversations of the demo say? Turns of people who want Python written.

The demo model has only ever read Python; its chat template turns what a person says into a comment.
"""

CONVERSATIONS: tuple[tuple[str, str], ...] = (
    ("read a file and count the words in it", "return the ten most common words"),
    ("parse command line arguments for a small server", "add an option for the port"),
    ("open a socket and send a request", "retry when the connection is refused"),
    ("a class that caches results of a function", "add a limit to the size of the cache"),
    ("walk a directory tree and find large files", "skip hidden directories"),
    ("test that a list is sorted", "use unittest and check empty lists too"),
    ("convert a date from a string", "raise an error for a bad format"),
    ("a thread pool that runs jobs from a queue", "stop all workers at exit"),
)


def turns_of(conversation: int) -> tuple[str, str]:
    """What conversation `conversation` says; beyond the list, a numbered variation of it."""
    base = CONVERSATIONS[conversation % len(CONVERSATIONS)]
    round_number = conversation // len(CONVERSATIONS)
    if not round_number:
        return base
    return base[0] + f" (version {round_number + 1})", base[1]

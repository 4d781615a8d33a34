"""How was a row of a table measured? Read from its labels, never from its numbers.

A first token's time is as much about the load generator as about the engine, and no column names
it. Three habits are told apart by the lengths that they ask for:

recipe   1024/1024, 1024/8192, 8192/1024, the grid of the public nightly benchmark. Its published
         settings: lengths drawn evenly from 0.8 to 1.0 of the label, ten times as many requests as
         run at once, all sent at the start (one tenth of them stands in that burst). On devices
         with 4-bit tensor cores its SGLang looks at arrivals once in 10 decode steps, or once in
         30 when 16 requests or more run.
sweep    other multiples of 128: every request has the same lengths, so that those which start
         together end together and their successors come together.
warmed   decimal lengths (1000, 4000, 15000): counted after warming up, without the burst.

A version of a (model, engine, device) that asks for any sweep's lengths is a sweep as a whole.
"""

from collections.abc import Iterable

from .weigh import Traffic

RECIPE_LENGTHS = frozenset({(1024, 1024), (1024, 8192), (8192, 1024)})
RECIPE_MEAN = 0.9
BINARY = 128
POLL_STEPS, POLL_STEPS_BUSY, BUSY = 10.0, 30.0, 16
RECIPE, SWEEP, WARMED = "recipe", "sweep", "warmed"


def campaign(lengths: tuple[int, int], beside: Iterable[tuple[int, int]]) -> str:
    """The habit behind (input, output) tokens; `beside` are the lengths of the same version."""
    if not _is_binary(lengths):
        return WARMED
    swept = any(_is_binary(other) and other not in RECIPE_LENGTHS for other in beside)
    return SWEEP if swept or lengths not in RECIPE_LENGTHS else RECIPE


def mean_lengths(habit: str, lengths: tuple[int, int]) -> tuple[int, int]:
    """Mean input and output tokens of the requests that were sent."""
    share = RECIPE_MEAN if habit == RECIPE else 1.0
    return round(share * lengths[0]), round(share * lengths[1])


def traffic(habit: str, engine: str, has_fp4: bool, running: int) -> Traffic:
    """How requests came; `running` of them at once."""
    if habit == WARMED:
        return Traffic(opening=0.0)
    if habit == SWEEP:
        return Traffic(lockstep=1.0)
    polls = engine == "sglang" and has_fp4
    steps = POLL_STEPS_BUSY if running >= BUSY else POLL_STEPS
    return Traffic(poll_steps=steps if polls else 1.0)


def _is_binary(lengths: tuple[int, int]) -> bool:
    return not (lengths[0] % BINARY or lengths[1] % BINARY)

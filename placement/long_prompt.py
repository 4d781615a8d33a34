"""How is a long prompt of a planned replica cut, and what do its stages do meanwhile?

The fitted time model gives what a prompt costs by length and by the square of it; chunks of equal
time follow in closed form. A replica of one stage needs no such chunks and cuts evenly.
"""

import math
from dataclasses import dataclass

from .candidates import Candidate, Question
from .chunks import ChunkCost, bubble, equal_time_chunks
from .constants import Constants
from .hardware import Hardware
from .terms import Site
from .weigh import Point, chunk_counts, columns, prompt_parts

BLOCK = 64


@dataclass(frozen=True, slots=True)
class Cut:
    """The chunks of one prompt, and the share of a pipeline's time in which a stage is idle."""

    chunks: tuple[int, ...]
    bubble: float
    fixed_bubble: float  # the same with chunks of one width, for comparison


def stage_cost(
    question: Question, hardware: Hardware, candidate: Candidate, constants: Constants
) -> tuple[ChunkCost, int]:
    """(seconds of one stage by token and by pair of tokens, chunks of the plan)."""
    work = question.workload
    site = Site(question.shape, hardware, candidate.layout, question.precision)
    lengths = work.input_tokens, work.output_tokens
    table = columns([Point(site, question.engine, candidate.batch, *lengths, candidate.chunk)])
    linear, square = (float(part[0]) for part in prompt_parts(constants, table))
    tokens, stages = work.input_tokens, candidate.layout.pp
    cost = ChunkCost(linear / tokens / stages, 2 * square / tokens**2 / stages)
    return cost, int(chunk_counts(constants, table)[0])


def cut(question: Question, hardware: Hardware, candidate: Candidate, constants: Constants) -> Cut:
    """The chunks in which a replica reads a prompt of the workload's length."""
    tokens, stages = question.workload.input_tokens, candidate.layout.pp
    cost, count = stage_cost(question, hardware, candidate, constants)
    width = min(candidate.chunk, tokens)
    fixed = _even(tokens, width)
    chunks = equal_time_chunks(cost, tokens, count, BLOCK) if stages > 1 else fixed
    return Cut(chunks, bubble(cost, chunks, stages), bubble(cost, fixed, stages))


def _even(tokens: int, width: int) -> tuple[int, ...]:
    full = math.floor(tokens / width)
    rest = tokens - full * width
    return (width,) * full + ((rest,) if rest else ())

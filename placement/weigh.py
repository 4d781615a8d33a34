"""How long do a first token and every further one take? Terms weighed by fitted constants.

    step    = sum over operators of max(bytes, math) + messages + launches + sampling
    TPOT    = step + mixing x (running / output tokens) x prefill     (neighbours' prefills)
    TTFT    = admission + tokens on the host + own prefill + steps + burst + queue

A prefill is not captured in a graph: the host launches its kernels one by one while the device
works, so that it takes the larger of both, and prompts that share an iteration share its launches.

Vectorised over points, because a search weighs thousands and a fit weighs every measured row some
thousand times. The maximum is a smooth one (a p-norm), so that a fit can follow it.

Legend: n points.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .constants import ENGINES, Constants
from .terms import Pass, Site, Terms, pass_terms

Array = NDArray[np.float64]
SMOOTH = 3.0
UTILISATION_MAX = 0.95  # an M/D/1 queue has no mean beyond 1; a closed loop never gets there
CHUNK = 8192  # tokens of one prefill iteration: the default of the engines
FIELDS = tuple(field.name for field in fields(Terms))


@dataclass(frozen=True, slots=True)
class Traffic:
    """How requests come to a closed loop.

    `lockstep` 1: all lengths are equal, so that requests which start together end together;
    `poll_steps`: decode steps between the engine's looks at arrivals; `opening` 1: the burst of the
    start is in the mean, one request in ten.
    """

    lockstep: float = 0.0
    poll_steps: float = 1.0
    opening: float = 1.0


@dataclass(frozen=True, slots=True)
class Point:
    """A replica under load: `batch` running requests of each attention replica; `chunk` tokens of
    prompts that one iteration takes."""

    site: Site
    engine: str
    batch: float
    input_tokens: int
    output_tokens: int
    chunk: int = CHUNK
    traffic: Traffic = Traffic()


@dataclass(frozen=True, slots=True)
class Columns:
    """Terms of n points as arrays: one decode step, one prefill, and what the load is."""

    decode: dict[str, Array]
    prefill: dict[str, Array]
    engine: NDArray[np.int64]  # index into ENGINES, len(ENGINES) for any other
    load: dict[str, Array]


def decode_terms(point: Point) -> Terms:
    """One step of all running requests, half-way through their outputs."""
    context = point.input_tokens + point.output_tokens / 2
    work = Pass(point.batch, point.batch, context, context, False, point.batch)
    return pass_terms(point.site, work)


def prefill_terms(point: Point) -> Terms:
    """The prompt of one request."""
    half = point.input_tokens / 2
    return pass_terms(point.site, Pass(point.input_tokens, 1, half, half, True, 1))


def columns(points: Sequence[Point]) -> Columns:
    """Terms of many points."""
    groups = _alike(points)
    layouts = [point.site.layout for point in points]
    older = ["fp4" not in dict(point.site.hardware.flops) for point in points]
    four_bit = [point.site.precision.expert_type == "fp4" for point in points]
    known = {name: index for index, name in enumerate(ENGINES)}
    return Columns(
        decode=_arrays([_decode_group(group) for group in groups], groups),
        prefill=_arrays([prefill_terms(group[0]) for group in groups], groups),
        engine=np.array([known.get(p.engine, len(ENGINES)) for p in points], dtype=np.int64),
        load={
            "batch": np.array([float(p.batch) for p in points]),
            "input": np.array([float(p.input_tokens) for p in points]),
            "output": np.array([float(p.output_tokens) for p in points]),
            "chunk": np.array([float(p.chunk) for p in points]),
            "lockstep": np.array([p.traffic.lockstep for p in points]),
            "poll": np.array([p.traffic.poll_steps for p in points]),
            "opening": np.array([p.traffic.opening for p in points]),
            "tp": np.array([float(layout.tp) for layout in layouts]),
            "dp": np.array([float(layout.dp) for layout in layouts]),
            "pp": np.array([float(layout.pp) for layout in layouts]),
            "older": np.array(older, dtype=float),
            "four_bit": np.array(four_bit, dtype=float),
        },
    )


def _alike(points: Sequence[Point]) -> list[list[Point]]:
    """Runs of neighbours that differ in batch, chunk or traffic alone: they share their terms."""
    groups: list[list[Point]] = []
    for point in points:
        last = groups[-1][0] if groups else None
        same = last is not None and (
            last.site is point.site
            and last.input_tokens == point.input_tokens
            and last.output_tokens == point.output_tokens
        )
        if same:
            groups[-1].append(point)
        else:
            groups.append([point])
    return groups


def _decode_group(group: Sequence[Point]) -> Terms:
    """Terms of one decode step of points that share all but the batch; fields may be arrays."""
    if len(group) == 1:
        return decode_terms(group[0])
    batches: Any = np.array([float(point.batch) for point in group])
    first = group[0]
    return decode_terms(
        Point(first.site, first.engine, batches, first.input_tokens, first.output_tokens)
    )


def _arrays(terms: Sequence[Terms], groups: Sequence[Sequence[Point]]) -> dict[str, Array]:
    """Fields of terms as arrays over all points."""
    sizes = np.array([len(group) for group in groups])
    table: dict[str, Array] = {}
    for name in FIELDS:
        values = [getattr(t, name) for t in terms]
        if all(isinstance(value, (int, float)) for value in values):
            table[name] = np.repeat(np.array(values, dtype=float), sizes)
        else:
            parts = [
                v if isinstance(v, np.ndarray) else np.full(n, v)
                for v, n in zip(values, sizes, strict=True)
            ]
            table[name] = np.concatenate(parts) if parts else np.zeros(0)
    return table


def select(table: Columns, mask: NDArray[np.bool_]) -> Columns:
    """The points where `mask` is true."""
    return Columns(
        {name: column[mask] for name, column in table.decode.items()},
        {name: column[mask] for name, column in table.prefill.items()},
        table.engine[mask],
        {name: column[mask] for name, column in table.load.items()},
    )


class _Weights:
    """Constants spread over the points of a table: w("name") is an array of n, or one number when
    all points are of one engine."""

    def __init__(self, constants: Constants, table: Columns) -> None:
        self._constants, self._engine = constants, table.engine
        self._older = table.load["older"] > 0
        names = (*ENGINES, "")
        alike = len(self._engine) > 0 and bool((self._engine == self._engine[0]).all())
        self._only = names[int(self._engine[0])] if alike else None

    def __call__(self, name: str) -> Any:
        if self._only is not None:
            return self._constants.of(name, self._only)
        by_engine = [self._constants.of(name, engine) for engine in (*ENGINES, "")]
        return np.array(by_engine)[self._engine]

    def older(self, name: str) -> Array:
        """A factor that holds on older devices alone."""
        return np.where(self._older, self(name), 1.0)


def _larger(first: Array, second: Array) -> Array:
    """A smooth maximum."""
    total: Array = (first**SMOOTH + second**SMOOTH) ** (1 / SMOOTH)
    return total


def step_seconds(constants: Constants, table: Columns) -> Array:
    """Seconds of one decode step, [n]."""
    w, t = _Weights(constants, table), table.decode
    read, math = w.older("older_read"), w.older("older_math")
    four_bit = np.where(table.load["four_bit"] > 0, w("fp4_math"), 1.0)
    linear = _larger(
        t["linear_read"] / (w("linear_read") * read), t["linear_math"] / (w("linear_math") * math)
    )
    expert = _larger(
        t["expert_read"] / (w("expert_read") * read),
        t["expert_math"] / (w("expert_math") * math * four_bit),
    )
    cache = _larger(
        t["cache_read"] / (w("cache_read") * read),
        t["attention_math"] / (w("attention_math") * math),
    )
    fixed = w.older("older_launch") * t["launches"] * w("launch_s") + w("step_s")
    fixed = fixed + t["rows"] * w("row_s") + t["head"] / w("linear_read")
    total: Array = linear + expert + cache + fixed + _messages(w, table, t, 1.0)
    return total


def prompt_parts(constants: Constants, table: Columns) -> tuple[Array, Array]:
    """Device seconds of a prompt in one piece, all stages together: what grows with its length, and
    what grows with the square of it, each [n]."""
    w = _Weights(constants, table)
    linear, expert = _products(w, table, np.ones(1))
    messages = _messages(w, table, table.prefill, 1.0)
    return linear + expert + messages, _attention_seconds(w, table)


def _attention_seconds(w: _Weights, table: Columns) -> Array:
    """A ring of context ranks passes keys on while it computes with those it has."""
    t = table.prefill
    ring = t["ring_bytes"] / (w("link") * w.older("older_link"))
    return _larger(t["attention_math"] / (w("prefill_attention") * w.older("older_math")), ring)


def _products(w: _Weights, table: Columns, chunks: Array) -> tuple[Array, Array]:
    """Seconds of dense and of expert products of a prompt; every chunk reads the weights again."""
    t, read, math = table.prefill, w.older("older_read"), w.older("older_math")
    four_bit = np.where(table.load["four_bit"] > 0, w("fp4_math"), 1.0)
    tokens = np.maximum(1.0, t["tokens_per_expert"] / chunks)
    rate = w("prefill_expert") * four_bit * math * tokens / (tokens + w("half_full"))
    linear = _larger(
        chunks * t["linear_read"] / (w("linear_read") * read),
        t["linear_math"] / (w("prefill_math") * math),
    )
    expert = _larger(
        chunks * t["expert_read"] / (w("expert_read") * read), t["expert_math"] * w("skew") / rate
    )
    return linear, expert


def chunk_counts(constants: Constants, table: Columns) -> Array:
    """Iterations that a prompt takes, [n].

    One stage cuts evenly. Stages that follow each other get chunks of equal time, the first and
    widest of them as wide as a chunk may be: as many as the whole prompt takes times the first.
    """
    even = np.ceil(table.load["input"] / table.load["chunk"])
    if not (table.load["pp"] > 1).any():
        return even
    linear, square = prompt_parts(constants, table)
    share = np.minimum(1.0, table.load["chunk"] / table.load["input"])
    equal = np.ceil((linear + square) / (linear * share + square * share**2))
    counts: Array = np.where(table.load["pp"] > 1, np.maximum(even, equal), even)
    return counts


@dataclass(frozen=True, slots=True)
class _Prefill:
    """One prompt on its replica, each [n]: seconds of the device and of the host that launches,
    all chunks and stages together, and how many chunks."""

    device: Array
    host: Array
    chunks: Array

    @property
    def seconds(self) -> Array:
        """The larger of both: the host runs ahead of the device, or the device waits for it."""
        return _larger(self.device, self.host)

    def waits(self, stages: Array) -> Array:
        """The share of the work that its own first token waits for: n chunks of equal time pass
        p stages in n + p - 1 of their n p parts."""
        share: Array = (self.chunks + stages - 1) / (self.chunks * stages)
        return share


def _prefill(constants: Constants, w: _Weights, table: Columns) -> _Prefill:
    chunks = chunk_counts(constants, table)
    t = table.prefill
    linear, expert = _products(w, table, chunks)
    again = (chunks - 1) * t["cache_read"] / (w("cache_read") * w.older("older_read"))
    device = linear + expert + _attention_seconds(w, table) + again
    host = w.older("older_launch") * t["launches"] * w("prefill_launch_s") * chunks
    return _Prefill(device + _messages(w, table, t, chunks), host, chunks)


def prefill_seconds(constants: Constants, table: Columns) -> Array:
    """Seconds of one prompt's prefill without launches, all its chunks and stages together, [n].

    Every chunk reads the weights again, and the cache of the chunks before it.
    """
    return _prefill(constants, _Weights(constants, table), table).device


def _messages(w: _Weights, table: Columns, t: dict[str, Array], times: Array | float) -> Array:
    """Messages and the traffic of residuals, of either pass; each message is sent `times`."""
    link = w("link") * w.older("older_link")
    hops = np.log2(np.maximum(table.load["tp"], 1.0)) / 2 + 0.5
    total: Array = (t["reduce_bytes"] + t["exchange_bytes"]) / link + t["point_to_point"]
    latency = t["reduces"] * w("reduce_s") * hops + t["exchanges"] * w("exchange_s")
    total = total + times * latency
    return total + t["activations"] / w("activation_read")


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds of n points, each [n]."""

    tpot: Array
    ttft: Array
    step: Array  # a decode step that no prompt disturbs
    gap: Array  # a decode step that shares its iteration with a chunk of a prompt
    busy: Array  # a replica without decoding, with one prompt
    alone: Array  # to the first token of a prompt that has such a replica for itself
    through: Array  # of that, the time in its stages


def all_seconds(constants: Constants, table: Columns) -> Times:
    """Everything that a plan asks of n points."""
    w, load = _Weights(constants, table), table.load
    step, prefill = step_seconds(constants, table), _prefill(constants, w, table)
    # Prompts that one iteration can take, and those that it meets: itself, and as many as end in
    # the step before.
    room = np.maximum(1.0, load["chunk"] / load["input"])
    arriving = load["batch"] / load["output"]
    share = arriving * _larger(prefill.device, prefill.host / np.minimum(room, 1.0 + arriving))
    tpot = step + w("mixing") * share
    busy = np.minimum(UTILISATION_MAX, share / tpot)
    steps = w("own_steps") + (load["poll"] - 1) / 2
    together = w("own_prefill") + w("lockstep") * load["lockstep"]
    shared = _larger(prefill.device, prefill.host / room)
    burst = w("burst") * load["opening"] * load["batch"] * shared
    queue = w("queueing") * prefill.device * busy / (1 - busy)
    own = prefill.waits(load["pp"]) * prefill.seconds
    admission = w("admit_s") + load["input"] * w("token_s")
    weight = w("first_token_center") * np.where(load["dp"] > 1, w("replicated"), 1.0)
    return Times(
        tpot=tpot,
        ttft=(admission + together * own + steps * step + burst + queue) * weight,
        step=step,
        gap=step + prefill.seconds / prefill.chunks,
        busy=prefill.seconds,
        alone=(admission + own) * weight,
        through=own,
    )


def token_seconds(constants: Constants, table: Columns) -> tuple[Array, Array]:
    """(TPOT, TTFT) in seconds, each [n]."""
    times = all_seconds(constants, table)
    return times.tpot, times.ttft

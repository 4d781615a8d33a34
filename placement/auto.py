"""How wide should a model be, when its spec leaves that to us? `parallelism: auto`.

Pure. Only layouts that our own engine executes are weighed (`placement.executable`), with the time
model and the limits that the engine really has: requests of a rank, KV of a device. Of those that
fit and keep the limits:

    with a rate asked for   the fewest devices that serve it
    without one             the fewest devices within GAIN of the highest rate

A model that runs already stays as wide as it is unless another width is better by GAIN: a change
costs its users something, and predictions are not that exact.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from ..core.plan import Infeasible
from .candidates import BATCHES
from .constants import Constants
from .executable import executable_layouts, why_not_executable
from .hardware import Hardware
from .layouts import Layout
from .model_facts import ModelShape
from .quantities import Precision
from .terms import Site
from .weigh import Point, columns, token_seconds

GAIN = 1.10  # a tenth: about the error of one device more or less
ENGINE = "moectl"


class AutoReason(StrEnum):
    """Why a width was chosen, or why none was."""

    FEWEST_FOR_RATE = "FewestForRate"
    HIGHEST_RATE = "HighestRate"
    GAIN_TOO_SMALL = "GainTooSmall"
    RESTING = "Resting"
    NO_WIDTH = "NoWidth"


@dataclass(frozen=True, slots=True)
class AutoQuestion:
    """What is asked of every width. `batch_max` is what a rank's KV and limits allow."""

    shape: ModelShape
    precision: Precision
    hardware: Hardware  # of the slowest rank
    input_tokens: int
    output_tokens: int
    batch_max: int
    ttft_s: float | None = None
    tpot_s: float | None = None
    rate: float | None = None  # requests a second; None = as many as can be


@dataclass(frozen=True, slots=True)
class WidthOption:
    """One width at its best batch. `refusal` says what stands against it, "" nothing."""

    width: int
    batch: int
    rate: float  # requests a second
    ttft_s: float
    tpot_s: float
    refusal: str = ""


@dataclass(frozen=True, slots=True)
class AutoChoice:
    """The width, why, and every width that was weighed."""

    width: int
    reason: AutoReason
    message: str
    options: tuple[WidthOption, ...]


def why_never(shape: ModelShape) -> str:
    """Why our engine runs this model at no width at all; "" when it does."""
    return why_not_executable(shape, Layout())


def weigh_widths(
    question: AutoQuestion, widths: Sequence[int], constants: Constants
) -> tuple[WidthOption, ...]:
    """Every width at the batch of the highest rate that keeps the limits."""
    batches = [b for b in BATCHES if b <= question.batch_max] or [1]
    points = [
        Point(site, ENGINE, batch, question.input_tokens, question.output_tokens)
        for layout in executable_layouts(widths)
        for site in [Site(question.shape, question.hardware, layout, question.precision)]
        for batch in batches
    ]
    tpot, ttft = token_seconds(constants, columns(points))
    found = []
    for place, width in enumerate(widths):
        begin = place * len(batches)
        found.append(
            _best_batch(
                question,
                [
                    WidthOption(
                        width,
                        batch,
                        width * batch / float(first + question.output_tokens * each),
                        float(first),
                        float(each),
                    )
                    for batch, first, each in zip(batches, ttft[begin:], tpot[begin:], strict=False)
                ],
            )
        )
    return tuple(found)


def _best_batch(question: AutoQuestion, options: Sequence[WidthOption]) -> WidthOption:
    within = [o for o in options if not _too_slow(question, o)]
    if within:
        return max(within, key=lambda o: o.rate)
    nearest = min(options, key=lambda o: o.ttft_s + o.tpot_s)
    return refused(nearest, _too_slow(question, nearest))


def refused(option: WidthOption, why: str) -> WidthOption:
    """The same width, with what stands against it."""
    return WidthOption(option.width, option.batch, option.rate, option.ttft_s, option.tpot_s, why)


def _too_slow(question: AutoQuestion, option: WidthOption) -> str:
    for name, limit, value in (
        ("ttft", question.ttft_s, option.ttft_s),
        ("tpot", question.tpot_s, option.tpot_s),
    ):
        if limit is not None and value > limit:
            return f"{name} {value * 1e3:.3g} ms predicted, {limit * 1e3:.3g} ms asked"
    return ""


def choose(
    question: AutoQuestion, options: Sequence[WidthOption], present: int = 0
) -> AutoChoice | Infeasible:
    """The width, given what runs now (0: nothing does). `options` ascend in width."""
    open_ = [option for option in options if not option.refusal]
    if question.rate is not None:
        best = next((o for o in open_ if o.rate >= question.rate), None)
    else:
        top = max((o.rate for o in open_), default=0.0)
        best = next((o for o in open_ if o.rate * GAIN >= top), None)
    if best is None:
        return _nothing(question, options, open_)
    now = next((o for o in open_ if o.width == present), None)
    if now is not None and now is not best and not _is_worth_it(question, now, best, open_):
        text = (
            f"stays on {_devices(now.width)}: {best.width} would serve"
            f" {best.rate:.3g} requests/s instead of {now.rate:.3g} (predicted), not worth a change"
        )
        return AutoChoice(now.width, AutoReason.GAIN_TOO_SMALL, text, tuple(options))
    reason = AutoReason.HIGHEST_RATE if question.rate is None else AutoReason.FEWEST_FOR_RATE
    return AutoChoice(best.width, reason, _told(question, best, options), tuple(options))


def _is_worth_it(
    question: AutoQuestion, now: WidthOption, best: WidthOption, open_: Sequence[WidthOption]
) -> bool:
    """Whether the better width is better by so much that a change is due."""
    if question.rate is None:
        # Wider for a gain; narrower only when the devices that leave add next to nothing.
        top = max(o.rate for o in open_)
        return best.rate >= now.rate * GAIN if best.width > now.width else best.rate >= top / 1.02
    return now.rate < question.rate or best.rate >= question.rate * GAIN


def _told(question: AutoQuestion, best: WidthOption, options: Sequence[WidthOption]) -> str:
    asked = "" if question.rate is None else f", {question.rate:g} asked"
    text = (
        f"{best.width} of {_devices(options[-1].width)}: {best.rate:.3g} requests/s"
        f" predicted{asked}, TPOT {best.tpot_s * 1e3:.3g} ms at {best.batch} requests a rank"
    )
    other = next((o for o in reversed(options) if o.width < best.width), None)
    if other is not None:
        text += f"; {other.width}: " + (other.refusal or f"{other.rate:.3g} requests/s")
    return text


def _devices(count: int) -> str:
    return f"{count} device" + ("s" if count != 1 else "")


def _enough_ms(seconds: float) -> str:
    """A limit that is kept, in two digits: rounded up, never down."""
    digits = 1 - math.floor(math.log10(seconds * 1e3))
    step = 10.0**-digits
    return f"{math.ceil(seconds * 1e3 / step) * step:.{max(0, digits)}f}ms"


def _nothing(
    question: AutoQuestion, options: Sequence[WidthOption], open_: Sequence[WidthOption]
) -> Infeasible:
    if open_ and question.rate is not None:
        top = max(open_, key=lambda o: o.rate)
        text = f"{_devices(top.width)} serve {top.rate:.3g} requests/s, {question.rate:g} asked"
        return Infeasible((text,), f"workload.requestsPerS {top.rate:.2g}")
    reasons = tuple(f"{_devices(o.width)}: {o.refusal}" for o in options)
    slow = [o for o in options if _too_slow(question, o)]
    nearest = ""
    if slow:
        best = min(slow, key=lambda o: o.ttft_s + o.tpot_s)
        if question.ttft_s is not None and best.ttft_s > question.ttft_s:
            nearest = f"slo.ttft {_enough_ms(best.ttft_s)}"
        if question.tpot_s is not None and best.tpot_s > question.tpot_s:
            nearest += (" and " if nearest else "") + f"slo.tpot {_enough_ms(best.tpot_s)}"
        nearest += f" on {_devices(best.width)}"
    return Infeasible(reasons or ("no device is there",), nearest)

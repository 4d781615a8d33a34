"""Which engine settings may be tried, and which of their combinations are legal?

A setting is a field of `spec.engine`, under its name in the file. What a value may be is asked of
the spec's own types and rules, so the study never measures what `moectl apply` would refuse.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...core.errors import RefusedError, SpecError, UsageError

Value = int | bool
Settings = dict[str, Value]

#: Values worth trying when nobody says otherwise. Powers of two: the curves are smooth, and a
#: factor of two is about what noise of a few percent lets one tell apart.
DEFAULT_CHOICES: dict[str, tuple[Value, ...]] = {
    "prefillChunk": (16, 32, 64, 128, 256, 512),
    "maxBatchTokens": (32, 64, 128, 256, 512, 1024),
    "kvBlockTokens": (8, 16, 32, 64),
    "maxRequests": (8, 16, 32, 64, 128),
    "prefixCache": (False, True),
}
#: `threads` is tried up to the cores there are, but no higher: ranks share a machine.
THREADS = "threads"
THREADS_TRIED_MAX = 8
COMBINATIONS_MAX = 100_000


@dataclass(frozen=True, slots=True)
class Space:
    """Choices by setting, ascending. `present` is what the spec says now; it is among them."""

    choices: Mapping[str, tuple[Value, ...]]
    present: Settings
    spec: Mapping[str, Any]  # the plain spec that settings are put into

    def is_legal(self, settings: Mapping[str, Value]) -> bool:
        """Whether the spec with these settings would be accepted."""
        return why_refused(self.spec, settings) == ""

    def indexes(self, settings: Mapping[str, Value]) -> dict[str, int]:
        """Positions of the values among the choices: what the study works on."""
        return {name: values.index(settings[name]) for name, values in self.choices.items()}

    def settings(self, indexes: Mapping[str, int]) -> Settings:
        """The inverse of `indexes`."""
        return {name: values[indexes[name]] for name, values in self.choices.items()}

    def legal(self) -> Iterator[Settings]:
        """Every legal combination, in order."""
        names = list(self.choices)
        for values in itertools.product(*self.choices.values()):
            settings = dict(zip(names, values, strict=True))
            if self.is_legal(settings):
                yield settings


def build_space(spec: Mapping[str, Any], asked: Sequence[str], cores: int) -> Space:
    """The space around a plain spec. `asked` are texts such as `prefillChunk=32,64`.

    Raises UsageError for what is no choice at all, RefusedError for values that the spec's types
    refuse and for spaces without a legal combination or with too many.
    """
    choices: dict[str, tuple[Value, ...]] = dict(DEFAULT_CHOICES)
    counts = itertools.takewhile(
        lambda n: n <= min(cores, THREADS_TRIED_MAX), (2**i for i in itertools.count())
    )
    choices[THREADS] = tuple(counts)
    if spec.get("precision") == "reproducible":
        choices[THREADS] = (1,)  # rows keep their bits with one thread only
    for text in asked:
        name, values = parse_choice(text)
        choices[name] = values
    present = {name: spec["engine"][name] for name in choices}
    choices = {name: with_present(values, present[name]) for name, values in choices.items()}
    combinations = math.prod(map(len, choices.values()))
    if combinations > COMBINATIONS_MAX:
        raise RefusedError(
            f"{combinations} combinations are more than {COMBINATIONS_MAX}",
            next_step="give fewer values with --set",
        )
    for name, each in choices.items():
        _check_values(name, each)
    space = Space(choices, present, spec)
    if next((one for one in space.legal() if one != present), None) is None:
        raise RefusedError(
            f"no combination is legal but the present one: {_why_none(space)}",
            next_step="give other values with --set",
        )
    return space


def with_present(values: tuple[Value, ...], present: Value) -> tuple[Value, ...]:
    """Choices in ascending order, the present value among them: it is what must be beaten."""
    return tuple(sorted({*values, present}))


def parse_choice(text: str) -> tuple[str, tuple[Value, ...]]:
    """`prefillChunk=32,64` as name and values; raises UsageError."""
    name, equals, listed = text.partition("=")
    known = (*DEFAULT_CHOICES, THREADS)
    if name not in known or not equals or not listed:
        raise UsageError(
            f"--set {text}: not SETTING=VALUE,VALUE,...", next_step=f"settings: {', '.join(known)}"
        )
    values = tuple(_value(name, each.strip()) for each in listed.split(","))
    return name, values


def _value(name: str, text: str) -> Value:
    from ...core.units import UnitError, parse_count

    if name == "prefixCache":
        if text not in ("true", "false"):
            raise UsageError(f"--set {name}: {text!r} is neither true nor false")
        return text == "true"
    try:
        return parse_count(text)
    except UnitError as error:
        raise UsageError(f"--set {name}: {error.reason}", next_step=error.fix) from error


def _check_values(name: str, values: Sequence[Value]) -> None:
    """Every value by itself must be one that the spec's type takes."""
    from pydantic import ValidationError

    from ...core.spec import EngineSpec

    for value in values:
        try:
            EngineSpec.model_validate({name: value})
        except ValidationError as error:
            reason = error.errors()[0]["msg"]
            raise RefusedError(
                f"--set {name}={value}: {reason}",
                next_step=f"`moectl explain model.engine.{name}` says what it may be",
            ) from error


def with_settings(spec: Mapping[str, Any], settings: Mapping[str, Value]) -> dict[str, Any]:
    """A copy of a plain spec with these settings in its engine part."""
    return {**spec, "engine": {**spec.get("engine", {}), **settings}}


def why_refused(spec: Mapping[str, Any], settings: Mapping[str, Value]) -> str:
    """What the loader of specs has against these settings; empty when it takes them."""
    from ...core.spec import model_spec_from_plain

    try:
        model_spec_from_plain(with_settings(spec, settings))
    except SpecError as error:
        return str(error.mistakes[0].reason)
    return ""


def _why_none(space: Space) -> str:
    names = list(space.choices)
    for values in itertools.product(*space.choices.values()):
        settings = dict(zip(names, values, strict=True))
        if settings != space.present and (reason := why_refused(space.spec, settings)):
            return reason
    return "every setting has one value"

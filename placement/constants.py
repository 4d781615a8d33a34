"""Which share of the data sheet does an engine reach? The fitted constants of the time model.

Each has a prior (what the literature and the facts suggest) and a width in log space, so that a fit
on few rows stays near physics. A constant may be refined for an engine (`name@engine`); an engine
that was never measured uses the constant alone. Values ship with their fit report as data and come
in as plain numbers; nothing here reads a file.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

ENGINES = ("trtllm", "sglang", "vllm")


@dataclass(frozen=True, slots=True)
class Prior:
    """Where a constant starts, how far it may stray (one sigma of its logarithm), and whether
    engines differ in it."""

    value: float
    sigma: float
    by_engine: bool
    meaning: str


PRIORS: dict[str, Prior] = {
    "linear_read": Prior(0.75, 0.15, True, "share of bandwidth, attention and dense weights"),
    "expert_read": Prior(0.60, 0.20, False, "share of bandwidth, expert weights"),
    "cache_read": Prior(0.60, 0.25, True, "share of bandwidth, keys and values"),
    "linear_math": Prior(0.50, 0.25, False, "share of peak, dense products while decoding"),
    "expert_math": Prior(0.30, 0.30, False, "share of peak, expert products while decoding"),
    "attention_math": Prior(0.40, 0.30, False, "share of peak, attention while decoding"),
    "link": Prior(0.50, 0.25, False, "share of link bandwidth"),
    "reduce_s": Prior(6e-6, 0.35, True, "seconds of one all-reduce among 2 ranks"),
    "exchange_s": Prior(15e-6, 0.35, False, "seconds of one all-to-all"),
    "launch_s": Prior(1.5e-6, 0.35, True, "seconds of one launch inside a captured graph"),
    "step_s": Prior(1e-3, 0.40, True, "seconds of a step outside the layers"),
    "row_s": Prior(5e-6, 0.50, True, "seconds of sampling one row"),
    "prefill_math": Prior(0.55, 0.25, False, "share of peak, dense products of a prefill"),
    "prefill_expert": Prior(0.35, 0.30, False, "share of peak, expert products of a prefill"),
    "prefill_attention": Prior(0.40, 0.30, False, "share of peak, attention of a prefill"),
    "prefill_launch_s": Prior(6e-6, 0.35, True, "seconds of one launch outside a graph"),
    "mixing": Prior(1.0, 0.075, True, "how much of a prefill its neighbours wait for"),
    "admit_s": Prior(10e-3, 0.50, True, "seconds from arrival to the first launch"),
    "own_prefill": Prior(1.3, 0.25, False, "prefills that a request itself waits for"),
    "own_steps": Prior(2.5, 0.35, False, "steps it waits for: the running one, two overlapped"),
    "burst": Prior(0.05, 0.25, False, "prefills of others it waits for, per running request"),
    "queueing": Prior(0.30, 0.40, False, "weight of the waiting time of an M/D/1 queue"),
    "lockstep": Prior(1.5, 0.30, False, "more prefills it waits for where all lengths are equal"),
    "token_s": Prior(2e-6, 0.40, False, "seconds of the host for one token of a prompt"),
    "fp4_math": Prior(0.80, 0.10, False, "share that 4-bit experts keep of their own peak"),
    "older_launch": Prior(1.2, 0.075, False, "launches on devices before 4-bit tensor cores"),
    "older_read": Prior(1.0, 0.05, False, "bandwidth share on the same devices"),
    "older_math": Prior(1.0, 0.075, False, "peak share on the same devices"),
    "older_link": Prior(1.0, 0.075, False, "link share on the same devices"),
    "activation_read": Prior(1.0, 0.35, False, "share of bandwidth, residuals and norms"),
    "skew": Prior(1.3, 0.20, False, "load of the busiest device over the mean, experts"),
    "half_full": Prior(64.0, 0.35, False, "tokens of an expert at half of its best rate"),
    "replicated": Prior(1.5, 0.15, False, "first-token delay of data-parallel attention"),
}


@dataclass(frozen=True, slots=True)
class Constants:
    """Values by name; refinements by `name@engine` multiply."""

    values: Mapping[str, float]

    def of(self, name: str, engine: str) -> float:
        """The value for an engine."""
        return self.values.get(name, 1.0) * self.values.get(f"{name}@{engine}", 1.0)


def parameter_names() -> tuple[str, ...]:
    """Every name that a fit determines, in a fixed order."""
    names: list[str] = []
    for name, prior in PRIORS.items():
        names.append(name)
        if prior.by_engine:
            names += [f"{name}@{engine}" for engine in ENGINES]
    return tuple(names)


def prior_of(name: str) -> tuple[float, float]:
    """(logarithm of the prior value, sigma) of a parameter; refinements start at 1."""
    base, _, engine = name.partition("@")
    prior = PRIORS[base]
    # An engine strays from the others less than the constant from its prior.
    return (0.0, 2.4 * prior.sigma * 0.25 * 2) if engine else (math.log(prior.value), prior.sigma)


def default_constants() -> Constants:
    """The priors themselves: a model for hardware that nobody measured."""
    return Constants({name: math.exp(prior_of(name)[0]) for name in parameter_names()})

"""Which token comes next, given logits?

The draw for token i of a request is a function of its logits, its own tokens, its seed and i alone:
a counter-based generator keyed by (seed, i) gives one number in [0, 1), and the inverse of the
cumulative distribution in float64 gives the token. No state, so a replay on another rank draws the
same. First what changes logits: bias, repetition, presence and frequency penalties, grammar; then
the filters in the order temperature, top-k, top-p, min-p. Ties are broken by the lower token id.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .request import Likelihood, Sampling

_MASK_64 = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Draw:
    """What a draw depends on beside logits. `allowed_V` is the grammar's word, None for any."""

    sampling: Sampling
    index: int
    prompt_ids: Sequence[int] = ()
    generated_ids: Sequence[int] = ()
    allowed_V: np.ndarray | None = None


@dataclass(frozen=True, slots=True)
class Drawn:
    """Tokens in the order of the draws, and likelihoods where they were asked for."""

    tokens: list[int]
    likelihoods: list[Likelihood | None]


def draw(logits_SV: Tensor, draws: Sequence[Draw]) -> Drawn:
    """One token per row.

    Shapes: logits_SV [S', V] with S' >= len(draws); further rows are ignored.
    """
    if not draws:
        return Drawn([], [])
    tokens = torch.argmax(logits_SV[: len(draws)], dim=-1).tolist()
    likelihoods: list[Likelihood | None] = [None] * len(draws)
    for row, each in enumerate(draws):
        sampling = each.sampling
        if not sampling.is_plain:
            logits_V = logits_SV[row].double().cpu().numpy()
            tokens[row] = draw_one(_changed(logits_V, each), sampling, each.index)
        if sampling.logprobs >= 0:
            likelihoods[row] = likelihood(logits_SV[row], tokens[row], sampling.logprobs)
    return Drawn(tokens, likelihoods)


def likelihood(logits_V: Tensor, token: int, count: int) -> Likelihood:
    """The log-probability of a token, and those of the `count` likeliest, from logits [V]."""
    wide_V = logits_V.double().cpu().numpy()
    log_V = wide_V - wide_V.max()
    log_V = log_V - np.log(np.exp(log_V).sum())
    count = min(count, len(log_V))
    if not count:
        return Likelihood(float(log_V[token]))
    likely = np.argpartition(-log_V, count - 1)[:count]
    likely = likely[np.lexsort((likely, -log_V[likely]))]
    return Likelihood(float(log_V[token]), tuple((int(i), float(log_V[i])) for i in likely))


def draw_one(logits_V: np.ndarray, sampling: Sampling, index: int) -> int:
    """A sampled token from float64 logits [V]; impossible tokens are minus infinity."""
    if sampling.temperature <= 0.0:
        return int(np.argmax(logits_V))
    scaled_V = (logits_V - logits_V.max()) / sampling.temperature
    weight_V = np.exp(scaled_V)
    ids_C = _candidates(weight_V, sampling)
    cumulative_C = np.cumsum(weight_V if ids_C is None else weight_V[ids_C])
    point = uniform(sampling.seed, index) * cumulative_C[-1]
    at = min(int(np.searchsorted(cumulative_C, point, side="right")), len(cumulative_C) - 1)
    return at if ids_C is None else int(ids_C[at])


def uniform(seed: int, index: int) -> float:
    """The number in [0, 1) for token `index` under `seed`."""
    generator = np.random.Philox(key=seed & _MASK_64, counter=index)
    return float(np.random.Generator(generator).random())


def _changed(logits_V: np.ndarray, each: Draw) -> np.ndarray:
    """Logits after bias, penalties and grammar; the given array is not touched."""
    sampling = each.sampling
    if not sampling.changes_logits:
        return logits_V
    logits_V = logits_V.copy()
    for token, bias in sampling.logit_bias:
        logits_V[token] += bias
    if sampling.repetition_penalty != 1.0:
        seen = np.unique(np.fromiter((*each.prompt_ids, *each.generated_ids), dtype=np.int64))
        held = logits_V[seen]
        penalty = sampling.repetition_penalty
        logits_V[seen] = np.where(held > 0, held / penalty, held * penalty)
    if (sampling.presence_penalty or sampling.frequency_penalty) and each.generated_ids:
        generated = np.fromiter(each.generated_ids, dtype=np.int64)
        seen, counts = np.unique(generated, return_counts=True)
        logits_V[seen] -= sampling.presence_penalty + sampling.frequency_penalty * counts
    if each.allowed_V is not None:
        logits_V[~each.allowed_V] = -np.inf
    return logits_V


def _candidates(weight_V: np.ndarray, sampling: Sampling) -> np.ndarray | None:
    """Token ids that pass the filters, likeliest first; None when no filter is on."""
    limit = len(weight_V) if sampling.top_k <= 0 else min(sampling.top_k, len(weight_V))
    if limit == len(weight_V) and sampling.top_p >= 1.0 and sampling.min_p <= 0.0:
        return None
    ids_C = np.argsort(-weight_V, kind="stable")[:limit]
    if sampling.top_p < 1.0:
        cumulative_C = np.cumsum(weight_V[ids_C])
        # The smallest set whose share reaches top_p; never empty.
        keep = int(np.searchsorted(cumulative_C, sampling.top_p * cumulative_C[-1], side="left"))
        ids_C = ids_C[: keep + 1]
    if sampling.min_p > 0.0:
        ids_C = ids_C[weight_V[ids_C] >= sampling.min_p * weight_V[ids_C[0]]]
    return ids_C

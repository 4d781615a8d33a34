"""What does the gateway count? Prometheus metrics in a registry of its own.

Labels are models, routes and status codes only: their number is bounded by what is declared, never
by what clients send.
"""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from .timing import PHASES

# Seconds; from a warm small model to a long queue.
_FIRST_TOKEN_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_PER_TOKEN_S = (0.002, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28)


class Metrics:
    """All metrics of one gateway."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "moectl_gateway_requests",
            "Answered requests",
            ["route", "model", "code"],
            registry=self.registry,
        )
        self.tokens = Counter(
            "moectl_gateway_tokens", "Tokens", ["model", "kind"], registry=self.registry
        )
        self.replays = Counter(
            "moectl_gateway_replays",
            "Times a request was computed again on another worker",
            ["model"],
            registry=self.registry,
        )
        self.moves = Counter(
            "moectl_gateway_moves",
            "Times a request changed its worker and its KV moved along",
            ["model"],
            registry=self.registry,
        )
        self.inflight = Gauge(
            "moectl_gateway_requests_inflight", "Requests held now", registry=self.registry
        )
        self.first_token_s = Histogram(
            "moectl_gateway_time_to_first_token_seconds",
            "From the request to its first text",
            ["model"],
            buckets=_FIRST_TOKEN_S,
            registry=self.registry,
        )
        self.per_token_s = Histogram(
            "moectl_gateway_time_per_output_token_seconds",
            "Mean time per token after the first, of one request",
            ["model"],
            buckets=_PER_TOKEN_S,
            registry=self.registry,
        )
        self.phases_s = Histogram(
            "moectl_gateway_request_phase_seconds",
            "Where the time of a whole request went; the phases add up to it",
            ["model", "phase"],
            buckets=_FIRST_TOKEN_S,
            registry=self.registry,
        )
        self._silent = Counter(
            "moectl_gateway_silent_workers",
            "Times a worker was given up because it was silent",
            registry=self.registry,
        )
        self._silent_seen = 0
        self.at_workers = Gauge(
            "moectl_gateway_generations_at_workers",
            "Generations that workers hold for this gateway",
            ["model"],
            registry=self.registry,
        )
        self.waiting = Gauge(
            "moectl_gateway_generations_waiting",
            "Generations for which no worker could be found yet",
            ["model"],
            registry=self.registry,
        )

    def silent_workers(self, total: int) -> None:
        """How often so far a worker was given up for its silence."""
        self._silent.inc(max(total - self._silent_seen, 0))
        self._silent_seen = max(total, self._silent_seen)

    def observe_phases(self, model: str, timings: dict[str, float]) -> None:
        """Take one request's breakdown (milliseconds)."""
        for phase in PHASES:
            self.phases_s.labels(model, phase).observe(timings[f"{phase}_ms"] / 1e3)

    def render(self) -> bytes:
        """The text format that Prometheus scrapes."""
        return generate_latest(self.registry)

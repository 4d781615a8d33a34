"""What does the gateway count? Prometheus metrics in a registry of its own.

Labels are models, routes and status codes only: their number is bounded by what is declared, never
by what clients send.
"""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

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
            "Times a request changed its worker",
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

    def render(self) -> bytes:
        """The text format that Prometheus scrapes."""
        return generate_latest(self.registry)

"""Which benches are there? Name -> module and one line about it; a module is imported when run."""

BENCHES: dict[str, tuple[str, str]] = {
    "balance": ("balance", "Copies of experts: evenness beside EPLB, on this load and the next."),
    "cache": ("cache", "Cache policies, predictors and bounds on recorded routes."),
    "engine": ("engine", "One rank against batched generation by transformers; prefix cache."),
    "memory": ("memory", "Attach, re-spread, waste and leaks of memory that outlives its workers."),
    "plan": ("plan", "Facts, memory, predictions on unseen rows, exactness and speed of plans."),
    "scale": ("scale", "Scaling under load beside cold restart, replica, drained intake."),
}

"""Settings of every test: property tests are repeatable and have no clock.

This file is also read by `make gpu`, on machines without Hypothesis: it must need nothing.
"""

try:
    from hypothesis import HealthCheck, settings
except ImportError:  # a GPU machine: no property test runs there
    pass
else:
    # Repeatable: a failure on one machine is a failure on all; `--hypothesis-profile=search`
    # draws new examples instead. No deadline: a busy machine is not a wrong program.
    settings.register_profile(
        "repeatable",
        deadline=None,
        derandomize=True,
        max_examples=100,
        suppress_health_check=[HealthCheck.too_slow],
    )
    settings.register_profile(
        "search", deadline=None, max_examples=1000, suppress_health_check=[HealthCheck.too_slow]
    )
    settings.load_profile("repeatable")

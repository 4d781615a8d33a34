"""moectl: a cluster manager for Mixture-of-Experts models that changes a serving fleet unnoticed."""

__version__ = "0.1.0"

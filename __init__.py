"""moectl: a cluster manager for Mixture-of-Experts models that changes a fleet while it serves."""

__version__ = "0.1.0"

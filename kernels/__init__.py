"""Pure functions on tensors: attention over pages, experts over slots. No process, no model."""

from .native import backend_name

__all__ = ["backend_name"]

"""Parsing with a memory: in a simulation a dozen readers parse the same records again and again."""

from functools import lru_cache

from moectl.core.records import from_json

parse = lru_cache(maxsize=4096)(from_json)  # records are frozen, so sharing them is safe

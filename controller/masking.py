"""Whose names stand in a text? Refusals of a page pool name all holders; each tenant reads its own.

A pool tells who holds its pages ("law/experts 240"), and that text goes into acknowledgements,
reasons, conditions, workers' messages and events. Pure: records in, records out.
"""

import dataclasses
import re
from collections.abc import Set
from typing import Any

from ..core.records import ModelStatus

ANOTHER_TENANT = "another tenant"  # who holds what the viewer may not know more about
# "law/experts", and with what lies between: "chat/law/adapters". Not the end of a path.
PARTY = re.compile(r"(?<![\w./-])([\w.-]+)/(?:[\w.-]+/)?(?:shared|experts|kv|adapters)(?![\w/-])")


def text(said: str, own: Set[str]) -> str:
    """A text with the parties of all models but `own` called another tenant's."""
    return PARTY.sub(lambda found: found[0] if found[1] in own else ANOTHER_TENANT, said)


def field(record: Any, name: str, own: Set[str]) -> Any:
    """A record with one text field masked; the record itself when there is nothing to mask."""
    said = getattr(record, name)
    told = text(said, own)
    return record if told == said else dataclasses.replace(record, **{name: told})


def status(record: ModelStatus, own: Set[str]) -> ModelStatus:
    """A model's status with the messages of its conditions masked."""
    told = tuple(field(condition, "message", own) for condition in record.conditions)
    return record if told == record.conditions else dataclasses.replace(record, conditions=told)

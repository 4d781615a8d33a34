"""Which models can be asked for, and what is known of each that the gateway needs?

A model is served when its spec is in the store. Its text side is loaded once per folder, in a
thread, and forgotten when no spec names the folder any more.
"""

import asyncio
import logging
from dataclasses import dataclass
from pathlib import Path

from ...core.errors import CheckpointError, MoectlError
from ...core.records import SpecRecord, TokenRecord
from ...core.spec import model_spec_from_plain
from .admission import may_use
from .api_errors import unavailable, unknown_model
from .fleet import Directory
from .tokenizer import TextModel, load_text_model

log = logging.getLogger("moectl.gateway.models")


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One model as a request sees it."""

    name: str
    text: TextModel
    context_tokens: int
    replay_deadline_s: float
    created: int  # seconds since the epoch: when its spec last changed


class Models:
    """Models by name, from the directory's specs."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self._texts: dict[str, asyncio.Task[TextModel]] = {}  # by folder

    def names(self, caller: TokenRecord) -> list[tuple[str, int]]:
        """(name, created) of every declared model that a token may use, by name."""
        specs = self._directory.specs
        mine = sorted(name for name, record in specs.items() if may_use(caller, record))
        return [(name, int(specs[name].changed_at)) for name in mine]

    async def get(self, name: str, caller: TokenRecord) -> ServedModel:
        """The model, its text side loaded; raises ApiError 404 or 503."""
        record = self._directory.specs.get(name)
        if record is None or not may_use(caller, record):
            raise unknown_model(name)
        try:
            return await self._load(record)
        except CheckpointError as error:
            log.error("model %s: %s", name, error.message)
            raise unavailable(f"the files of model {name!r} cannot be read") from error
        except (MoectlError, ValueError) as error:
            log.error("model %s: spec not understood: %s", name, error)
            raise unavailable(f"the spec of model {name!r} cannot be read") from error

    async def _load(self, record: SpecRecord) -> ServedModel:
        spec = model_spec_from_plain(record.spec)
        text = await self._text(spec.source.path)
        limits = (spec.engine.max_context, text.context_tokens)
        told = self._directory.context_tokens(record.name)
        context = min((limit for limit in (*limits, told) if limit), default=0)
        return ServedModel(
            name=record.name,
            text=text,
            context_tokens=context,
            replay_deadline_s=spec.replay_deadline,
            created=int(record.changed_at),
        )

    async def _text(self, folder: str) -> TextModel:
        task = self._texts.get(folder)
        if task is None or (task.done() and task.exception() is not None):
            self._forget_unused(folder)
            coroutine = asyncio.to_thread(load_text_model, Path(folder))
            task = self._texts[folder] = asyncio.get_running_loop().create_task(coroutine)
        return await asyncio.shield(task)

    def _forget_unused(self, keep: str) -> None:
        used = {
            str(record.spec.get("source", {}).get("path"))
            for record in self._directory.specs.values()
        }
        self._texts = {
            folder: task for folder, task in self._texts.items() if folder in used | {keep}
        }

"""How is a whole rank loaded: by several readers, every byte read once, with a word on how far?

A `Load` names a tensor (or one index of its first dim) and every place on this node where it is
wanted: it is read into the first and copied to the others, so that no byte comes from the disk
twice. Readers are threads, each with its own files and bounce buffer; they take loads in file
order, so that a disk sees one sweep.

With `checksums` the bytes of every tensor are summed as they stand in the file (CRC-32), and
compared where the caller knows what they should be. The first error stops all readers and is
raised: pages are the caller's reservation, and go back with it.
"""

import threading
import zlib
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ..core.errors import CheckpointError
from .loader import CheckpointReader, ExpertStyle, expert_span, read_expert_into

Span = tuple[Path, int, int]  # a file, where in it a load begins, and its bytes
Progress = Callable[[int, int], None]  # bytes read so far, bytes in all; called from reader threads


@dataclass(frozen=True, slots=True)
class Load:
    """One tensor and where it is wanted; `index` picks one of its first dim."""

    name: str
    targets: tuple[torch.Tensor, ...]
    index: int | None = None

    @property
    def label(self) -> str:
        """How checksums name it."""
        return self.name if self.index is None else f"{self.name}[{self.index}]"

    def span(self, reader: CheckpointReader) -> Span:
        """Where it stands. Raises CheckpointError when it is missing."""
        entry = reader.entry(self.name)
        parts = 1 if self.index is None else max(1, entry.shape[0])
        return entry.file, entry.begin, (entry.end - entry.begin) // parts

    def run(self, reader: CheckpointReader) -> int:
        """Read it; returns the bytes that were copied besides."""
        first, *others = self.targets
        reader.read_tensor_into(self.name, first, self.index)
        for other in others:
            other.copy_(first)
        return sum(other.nbytes for other in others)


@dataclass(frozen=True, slots=True)
class ExpertLoad:
    """One expert of a routed layer and its slot; `layer` is the model's layer index."""

    layer: int
    expert: int
    gate_up: torch.Tensor  # [2I, H]
    down: torch.Tensor  # [H, I]
    style: ExpertStyle

    @property
    def label(self) -> str:
        """How checksums name it."""
        return f"layer {self.layer} expert {self.expert}"

    def span(self, reader: CheckpointReader) -> Span:
        """Where its first tensor stands; bytes of all its matrices, in the file's dtype."""
        return expert_span(reader, self.layer, self.expert)

    def run(self, reader: CheckpointReader) -> int:
        """Read it into its slot."""
        read_expert_into(reader, self.layer, self.expert, self.gate_up, self.down, self.style)
        return 0


@dataclass(slots=True)
class Loaded:
    """What came of it. `bytes_read` is what came from files, `direct_bytes` past the page cache."""

    bytes_read: int = 0
    bytes_copied: int = 0
    direct_bytes: int = 0
    checksums: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How to load. `expected` maps labels to CRC-32 sums; it switches checksums on.

    `should_stop` is asked before every tensor: then a CheckpointError says that it was stopped.
    """

    readers: int = 2
    direct: bool = False
    checksums: bool = False
    expected: Mapping[str, int] = field(default_factory=dict)
    progress: Progress | None = None
    should_stop: Callable[[], bool] | None = None


def load_all(
    folder: str | Path, loads: Sequence[Load | ExpertLoad], options: LoadOptions | None = None
) -> Loaded:
    """Load everything, or raise the first CheckpointError (file and tensor are named)."""
    work = _Work(Path(folder), loads, options or LoadOptions())
    threads = [
        threading.Thread(target=work.run, name=f"reader-{number}", daemon=True)
        for number in range(max(1, min(work.options.readers, len(loads))))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if work.error is not None:
        raise work.error
    return work.loaded


class _Work:
    """What the readers share, under one lock."""

    def __init__(
        self, folder: Path, loads: Sequence[Load | ExpertLoad], options: LoadOptions
    ) -> None:
        self.options, self.loaded = options, Loaded()
        self.error: Exception | None = None
        self._folder = folder
        self._lock = threading.Lock()
        with CheckpointReader(folder) as reader:
            spans = [load.span(reader) for load in loads]
        order = sorted(range(len(loads)), key=lambda at: spans[at][:2])
        self._waiting = deque(loads[at] for at in order)
        self._total = sum(size for _, _, size in spans)

    def run(self) -> None:
        """One reader's life."""
        summing = self.options.checksums or bool(self.options.expected)
        try:
            with CheckpointReader(
                self._folder, direct=self.options.direct, on_bytes=zlib.crc32 if summing else None
            ) as reader:
                while (load := self._next()) is not None:
                    self._load(reader, load, summing)
                with self._lock:
                    self.loaded.direct_bytes += reader.direct_bytes
        except Exception as error:  # a thread's top: it is raised by `load_all`
            with self._lock:
                self.error = self.error or error
                self._waiting.clear()

    def _next(self) -> Load | ExpertLoad | None:
        stop = self.options.should_stop
        if stop is not None and stop():
            raise CheckpointError(f"{self._folder}: loading was stopped")
        with self._lock:
            return self._waiting.popleft() if self._waiting else None

    def _load(self, reader: CheckpointReader, load: Load | ExpertLoad, summing: bool) -> None:
        before = reader.bytes_read
        reader.checksum = 0
        copied = load.run(reader)
        wanted = self.options.expected.get(load.label)
        if wanted is not None and wanted != reader.checksum:
            raise CheckpointError(
                f"{load.span(reader)[0]}: tensor {load.label} has checksum "
                f"{reader.checksum:08x}, {wanted:08x} was expected",
                next_step="copy the file again; its content is not what was written",
            )
        with self._lock:
            loaded = self.loaded
            loaded.bytes_read += reader.bytes_read - before
            loaded.bytes_copied += copied
            if summing:
                loaded.checksums[load.label] = reader.checksum
            done = loaded.bytes_read
        if self.options.progress is not None:
            self.options.progress(done, self._total)

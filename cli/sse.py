"""How are server-sent events read? Lines in, (event name, data text) out. Pure; comments are
dropped.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Event:
    """One event; `name` is "message" when the server gave none."""

    name: str
    data: str


@dataclass(slots=True)
class EventReader:
    """Collects lines until a blank one ends an event."""

    _name: str = ""
    _data: list[str] = field(default_factory=list)

    def feed(self, line: str) -> Event | None:
        """Take one line without its end; an event when this line ends one."""
        if not line:
            event = Event(self._name or "message", "\n".join(self._data)) if self._data else None
            self._name, self._data = "", []
            return event
        key, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if key == "event":
            self._name = value
        elif key == "data":
            self._data.append(value)
        return None


def events(lines: Iterable[str]) -> Iterator[Event]:
    """All events of a stream of lines."""
    reader = EventReader()
    for line in lines:
        event = reader.feed(line)
        if event is not None:
            yield event

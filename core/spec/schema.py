"""The JSON Schema of the specs, made from the types themselves, for editors and for other tools.

`python -m moectl.core.spec.schema` prints it; `clusters/schema/moectl.dev-v1.json` is its output,
and a test compares the two. It knows types and choices; rules over several fields are the loader's.
"""

import json
from typing import Any

from ..units import exact_duration
from .load import API_VERSION, KINDS
from .types import NAME_LENGTH_MAX, NAME_PATTERN

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def json_schema() -> dict[str, Any]:
    """One schema that accepts a document of any kind."""
    definitions: dict[str, Any] = {}
    branches = []
    for kind, entry in sorted(KINDS.items()):
        body = entry.model.model_json_schema(by_alias=True, ref_template="#/$defs/{model}")
        definitions |= body.pop("$defs", {})
        definitions[kind] = _document(kind, body)
        branches.append({"$ref": f"#/$defs/{kind}"})
    whole = {"$schema": DIALECT, "oneOf": branches, "$defs": definitions}
    cleaned: dict[str, Any] = _clean(whole)
    return cleaned


def _clean(value: Any) -> Any:
    """Without pydantic's titles, and with the defaults of durations as they are written."""
    if isinstance(value, list):
        return [_clean(item) for item in value]
    if not isinstance(value, dict):
        return value
    cleaned = {key: _clean(item) for key, item in value.items() if key != "title"}
    if isinstance(cleaned.get("default"), float):
        cleaned["default"] = exact_duration(cleaned["default"])
    return cleaned


def _document(kind: str, spec: dict[str, Any]) -> dict[str, Any]:
    name = {"type": "string", "pattern": f"^{NAME_PATTERN}$", "maxLength": NAME_LENGTH_MAX}
    metadata = {
        "type": "object",
        "properties": {"name": name},
        "required": ["name"],
        "additionalProperties": False,
    }
    return {
        "type": "object",
        "properties": {
            "apiVersion": {"const": API_VERSION},
            "kind": {"const": kind},
            "metadata": metadata,
            "spec": spec,
        },
        "required": ["apiVersion", "kind", "metadata", "spec"],
        "additionalProperties": False,
    }


def schema_text() -> str:
    """The schema as it is stored in the repository."""
    return json.dumps(json_schema(), indent=2, sort_keys=True) + "\n"


if __name__ == "__main__":
    print(schema_text(), end="")

"""What `moectl tune` writes goes through the real admission, and changes what it says, no more."""

import pytest
import yaml

from moectl.cli import specs
from moectl.cli.commands.diff import compare
from moectl.cli.tune.patch import changed, patched_document, write_patch
from moectl.controller import intents
from moectl.controller.admission import Ground
from moectl.core.errors import SpecError
from moectl.core.records import SpecRecord, from_json

RAW = {
    "apiVersion": "moectl.dev/v1",
    "kind": "Model",
    "metadata": {"name": "chat"},
    "spec": {
        "source": {"path": "../models/chat"},
        "parallelism": {"experts": 2},
        "memory": {"kvPerDevice": "1MiB"},
        "engine": {"maxContext": 64},
    },
}
TUNED = {"prefillChunk": 128, "maxBatchTokens": 512, "threads": 2, "prefixCache": False}


def applied(file, fleet):
    """A file through the client's and the controller's code; the record that would be written."""
    documents = specs.read_documents(str(file))
    (request,) = specs.to_request(documents, specs.folder_of(str(file)))
    (declared,) = intents.parse_declarations([request])
    ground = Ground(fleet.snapshot, fleet.facts, fleet.limits)
    accepted = intents.decide_apply(declared, ground, intents.Caller("ann", 1000.0, "op-1"))
    key = fleet.keys.spec("Model", "chat")
    return request, from_json(SpecRecord, dict(accepted.change.puts)[key])


@pytest.fixture
def patch(tmp_path):
    path = tmp_path / "chat-tuned.yaml"
    write_patch(path, patched_document(RAW, "/models/chat", TUNED), ["evidence: 1.2", "more"])
    return path


def test_a_patch_is_admitted_and_differs_in_the_tuned_fields_alone(fleet, tmp_path, patch) -> None:
    before = tmp_path / "chat.yaml"
    before.write_text(
        yaml.safe_dump({**RAW, "spec": {**RAW["spec"], "source": {"path": "/models/chat"}}})
    )
    _, declared = applied(before, fleet)
    request, record = applied(patch, fleet)
    assert record.spec["engine"] == {**declared.spec["engine"], **TUNED}
    changes = compare(request, {"spec": declared.spec, "fields": {}})
    assert {change["field"]: change["file"] for change in changes} == {
        f"engine.{name}": value for name, value in TUNED.items()
    }


def test_the_evidence_stands_above_the_document_and_only_its_owner_reads_it(patch) -> None:
    assert patch.read_text().startswith("# evidence: 1.2\n# more\napiVersion:")
    assert patch.stat().st_mode & 0o777 == 0o600


def test_a_document_that_would_be_refused_is_never_written(tmp_path) -> None:
    path = tmp_path / "patch.yaml"
    with pytest.raises(SpecError):
        write_patch(path, patched_document(RAW, "/m", {"prefillChunk": 9999}), [])
    assert not path.exists()


def test_only_what_differs_is_in_the_patch() -> None:
    present = {"prefillChunk": 64, "threads": 1}
    assert changed(present, {"prefillChunk": 64, "threads": 2}) == {"threads": (1, 2)}

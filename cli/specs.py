"""From a file to documents that the API takes: where specs are found and how their paths are
resolved.

The API may run elsewhere, so a model's relative `source.path` is made absolute here, against the
folder of the file that names it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import RefusedError, UsageError

if TYPE_CHECKING:  # pydantic is heavy: only the commands that read a spec import it
    from ..core.spec import Document

DEFAULT_SPEC = "clusters/local.yaml"
STDIN = "-"


def clusters_dir() -> Path:
    """The folder of specs that ships inside the package."""
    return Path(__file__).resolve().parent.parent / "clusters"


def find_spec(given: str) -> Path:
    """The file a person means: as given, or the shipped one of that name.

    `clusters/local.yaml` and `local.yaml` mean the shipped file when no such file exists here.
    """
    path = Path(given).expanduser()
    if path.exists():
        return path.resolve()
    shipped = clusters_dir() / path.name
    if shipped.is_file() and str(path) in (path.name, f"clusters/{path.name}"):
        return shipped
    names = ", ".join(sorted(p.name for p in clusters_dir().glob("*.yaml"))) or "none"
    raise RefusedError(
        f"no spec at {given}", next_step=f"give a file, or one of the shipped specs: {names}"
    )


def read_documents(given: str) -> "list[Document]":
    """Documents of a file, or of stdin for "-"; raises SpecError with every mistake."""
    from ..core.spec import load_documents

    return load_documents(given if given == STDIN else find_spec(given))


def to_request(documents: "Sequence[Document]", folder: Path) -> list[dict[str, Any]]:
    """Documents in the API's form, with every relative source path made absolute under `folder`."""
    from ..core.spec import to_plain

    bodies = []
    for document in documents:
        spec = to_plain(document.spec)
        source = spec.get("source") if document.kind == "Model" else None
        if source and not Path(source["path"]).is_absolute():
            source["path"] = str((folder / source["path"]).resolve())
        bodies.append({"kind": document.kind, "name": document.name, "spec": spec})
    return bodies


def folder_of(given: str) -> Path:
    """The folder that relative paths of a spec are meant against."""
    path = Path.cwd() if given == STDIN else find_spec(given)
    return path if path.is_dir() else path.parent


def only_cluster(documents: "Sequence[Document]", where: str) -> "Document":
    """The one Cluster of a spec that `up` can start; raises UsageError otherwise."""
    clusters = [document for document in documents if document.kind == "Cluster"]
    if len(clusters) != 1:
        raise UsageError(
            f"{where} declares {len(clusters)} clusters; `up` needs exactly one",
            next_step="put one document of kind Cluster into the file",
        )
    return clusters[0]

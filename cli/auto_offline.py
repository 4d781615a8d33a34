"""What would `parallelism: auto` pick on the fleet of a file? The controller's own code, no fleet.

A dry run of `moectl apply` asks a controller that runs; this asks the same function about the
Clusters that stand in the file beside the Model.
"""

from typing import Any

from ..core.errors import MoectlError


def picked(file: str) -> dict[str, Any]:
    """The choice as the API tells it; {} when no Model of the file says `auto`.

    Raises UnplaceableError with the nearest change when no width keeps all limits.
    """
    from pathlib import Path

    from ..controller import admission
    from ..controller.model_facts import NoFacts
    from ..controller.observe import Seen, Snapshot
    from ..core.facts import ModelFacts, read_model_facts
    from ..core.records import Keys, SpecRecord
    from ..core.spec import AUTO, ClusterSpec, ModelSpec, to_plain
    from . import specs

    documents = specs.read_documents(file)
    clusters = {
        ("Cluster", d.name): Seen(SpecRecord("Cluster", d.name, 1, to_plain(d.spec), "", 0, ""), 1)
        for d in documents
        if isinstance(d.spec, ClusterSpec)
    }
    for document in documents:
        spec = document.spec
        if not isinstance(spec, ModelSpec) or spec.parallelism.experts != AUTO or not clusters:
            continue
        path = Path(spec.source.path)
        whole = path if path.is_absolute() else specs.folder_of(file) / path
        facts: ModelFacts | NoFacts
        try:
            facts = read_model_facts(whole)
        except MoectlError as error:
            facts = NoFacts(error.message, error.next_step)
        snapshot = Snapshot(Keys("file"), specs=clusters)
        ground = admission.Ground(snapshot, {spec.source.path: facts})
        aim = admission.wanted(document.name, spec, ground)
        if aim.refusal is not None:
            raise admission.no_width(document.name, aim.refusal)
        return {"model": document.name, **admission.auto_view(aim)}
    return {}

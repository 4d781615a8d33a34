"""What does an answer look like? An example of every route, for /openapi.json.

Written by hand from a running fleet and shortened in its lists only; a test compares the fields of
each with those of a real answer, so that no example outlives what it shows.
"""

from typing import Any

WIDTHS = {"from_width": 2, "to_width": 4}
PREDICTION = {
    "bytes_moved": 4718592,
    "bytes_lower_bound": 4718592,
    "shared_bytes_moved": 6405632,
    "peak_bytes": {"n1/d0": 41484288, "n2/d0": 39124992},
    "prepare_s": 0.31,
    "pause_ms": 8.0,
    "steps_cross_node": 34,
}
PLAN = {
    "kind": "scale",
    **WIDTHS,
    "prediction": PREDICTION,
    "steps": {"keep": 34, "remap": 0, "copy": 34, "load": 0, "free": 34},
    "devices": {"n1/d0": 16, "n1/d1": 16, "n2/d0": 16, "n2/d1": 16},
}
SPEC = {
    "source": {"path": "/models/demo"},
    "parallelism": {"experts": 4},
    "memory": {"kvPerDevice": 33554432},
}
DECLARED = {
    "kind": "Model",
    "name": "chat",
    "generation": 2,
    "spec": SPEC,
    "operation_id": "scale-1",
    "changed_at": 1795737648.7,
    "changed_by": "ann",
    "fields": {"parallelism.experts": {"owner": "ann", "generation": 2, "before": "gitops"}},
    "origin": {"commit": "1a2b3c", "path": "clusters/chat.yaml"},
    "tenant": "default",
    "pace": "gentle",
}
TRANSITION = {
    "operation_id": "scale-1",
    "model": "chat",
    "kind": "scale",
    "phase": "done",
    "generation": 2,
    "prediction": PREDICTION,
    "accepted_at": 1795737648.7,
    "phase_at": {"prepare": 1795737648.7, "commit": 1795737649.7, "retire": 1795737649.8},
    "deadline_at": 1795737649.9,
    "store_address": "127.0.0.11:38285",
    "reason": "",
    "attempt": 1,
    "actual": {"bytes_copied": 4718592.0, "prepare_s": 1.0, "pause_ms": 9.9, "ready_s": 1.13},
    "record_id": "scale-1",
    **WIDTHS,
    "epoch": 2,
    "steps_total": 102,
    "answered": [],
    "final": True,
    "pace": "gentle",
}
CONDITION = {
    "type": "Ready",
    "status": "True",
    "reason": "Serving",
    "message": "4 workers serve",
    "observed_generation": 2,
    "changed_at": 1795737649.8,
}
STATUS = {
    "model": "chat",
    "observed_generation": 2,
    "desired_width": 4,
    "admitted_width": 4,
    "allocated_width": 4,
    "joined_width": 4,
    "effective_width": 4,
    "epoch": 2,
    "conditions": [CONDITION],
    "failed_generation": 0,
}
MODEL = {
    "name": "chat",
    "generation": 2,
    "spec": SPEC,
    "operation_id": "scale-1",
    "status": STATUS,
    "placement": {"model": "chat", "epoch": 2, "ranks": ["n1/d0"], "owners": [[[0]]]},
    "workers": [],
    "stats": [],
    "active": None,
}
NODE = {
    "name": "n1",
    "address": "127.0.0.11",
    "devices": [{"id": "d0", "kind": "cpu", "hbm_bytes": 100663296, "page_bytes": 16384}],
    "store_address": "127.0.0.11:38285",
    "agent_pid": 7249,
    "started_at": 1795737581.4,
    "page_kind": "4KiB",
    "usage": [],
    "stats_at": 1795738410.2,
}
EVENT = {
    "id": "1795737649923-model.chat-ScaleDone-0",
    "at": 1795737649.9,
    "severity": "info",
    "subject": "model/chat",
    "reason": "ScaleDone",
    "message": "scale 2 -> 4, epoch 2: done",
    "operation_id": "scale-1",
}
TOKEN = {"name": "ci", "role": "operator", "tenant": "default", "created_at": 1795737585.5}
TOKEN_ID = {"id": "b4cc719d53a6"}
FLEET = {
    "store_age_s": 0.4,
    "cluster": "local",
    "revision": 1042,
    "at": 1795738410.3,
    "nodes": [NODE],
    "missing_nodes": [],
    "models": [MODEL],
    "transitions": [TRANSITION],
    "events": [EVENT],
    "endpoints": {"controller": "http://127.0.0.1:8470", "gateway": "http://127.0.0.1:8400"},
    "unreadable": {},
}
SCALED = {"model": "chat", "generation": 2, "to_width": 4, "plan": PLAN, "operation_id": "scale-1"}
APPLIED = {"kind": "Model", "name": "chat", "action": "created", "generation": 1}

ANSWERS: dict[tuple[str, str], Any] = {
    ("get", "/v1/healthz"): {"status": "ok", "leader": True, "store_age_s": 0.4},
    ("get", "/v1/version"): {"version": "0.1.0", "api": "v1", "cluster": "local", "pid": 4242},
    ("get", "/v1/whoami"): {"name": "ci", "role": "operator", "tenant": "default"},
    ("get", "/v1/fleet"): FLEET,
    ("get", "/v1/nodes"): [NODE],
    ("get", "/v1/nodes/{node}/devices/{device}/pages"): {
        "node": "n1",
        "device": "d0",
        "page_bytes": 16384,
        "reserved": 0,
        "spans": [[0, 196, "chat/shared", "weights that are no routed experts"]],
        "claims": [["chat/kv", 2048, 1.0, 2048]],
    },
    ("get", "/v1/models"): [MODEL],
    ("get", "/v1/models/{name}"): MODEL,
    ("get", "/v1/transitions"): [TRANSITION],
    ("get", "/v1/transitions/{operation_id}"): TRANSITION,
    ("get", "/v1/events"): [EVENT],
    ("get", "/v1/specs/{kind}"): [DECLARED],
    ("get", "/v1/specs/{kind}/{name}"): DECLARED,
    ("get", "/v1/tokens"): [TOKEN | TOKEN_ID],
    ("post", "/v1/tokens"): TOKEN | TOKEN_ID | {"token": "moe_..."},
    ("delete", "/v1/tokens/{name}"): {"name": "ci", "action": "revoked"},
    ("post", "/v1/models/{name}/scale"): SCALED | {"dry_run": False},
    ("post", "/v1/models/{name}/release"): {
        "kind": "Model",
        "name": "chat",
        "field": "parallelism.experts",
        "owner": "gitops",
        "dry_run": False,
    },
    ("post", "/v1/transitions/{operation_id}/cancel"): {
        "operation_id": "scale-1",
        "model": "chat",
        "phase": "forfeit",
        "dry_run": False,
    },
    ("post", "/v1/apply"): {
        "results": [APPLIED | {"operation_id": "apply-1", "plan": PLAN}],
        "operation_id": "apply-1",
        "dry_run": False,
    },
    ("delete", "/v1/specs/{kind}/{name}"): {
        "kind": "Model",
        "name": "chat",
        "action": "deleted",
        "operation_id": "delete-chat-e2",
        "dry_run": False,
    },
}
STREAMS = {
    ("get", "/v1/watch"): 'event: fleet\ndata: {"cluster":"local"}\nid: 1042\n\n',
    ("get", "/v1/transitions/{operation_id}/watch"): (
        'event: transition\ndata: {"operation_id":"scale-1","phase":"done","final":true}\n\n'
    ),
    ("get", "/v1/events/watch"): 'event: event\ndata: {"reason":"ScaleDone"}\nid: 17957376\n\n',
}

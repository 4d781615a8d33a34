"""A made-up fleet for tests and pictures of the screen, with a clock that stands still.

It has the shape that the API answers with, so that reading an answer is tested along the way.
"""

from typing import Any

from ..fleet_view import FleetView, fleet_from_plain

NOW = 1_750_000_000.0
LAYERS, EXPERTS = 4, 16
PAGE = 16_384
TOTAL_PAGES = 6144


def sample_fleet(
    width: int = 2,
    *,
    phase: str = "done",
    tick: int = 0,
    layers: int = LAYERS,
    experts: int = EXPERTS,
) -> FleetView:
    """Two nodes of two devices; a change from 2 to `width` devices that stands at `phase`."""
    return fleet_from_plain(sample_answer(width, phase, tick, layers, experts))


def sample_answer(
    width: int, phase: str, tick: int, layers: int = LAYERS, experts: int = EXPERTS
) -> dict[str, Any]:
    """The same as plain data."""
    devices = [f"n{1 + i // 2}/d{i % 2}" for i in range(4)]
    serving = width if phase in ("retire", "done") else 2
    return {
        "cluster": "local",
        "revision": 118 + tick,
        "at": NOW + tick,
        "nodes": [_node(name, devices, serving) for name in ("n1", "n2")],
        "missing_nodes": [],
        "models": [_model(width, phase, tick, devices[:serving], (layers, experts))],
        "transitions": [_created(), _change(width, phase)] if width != 2 else [_created()],
        "events": _events(width, phase),
        "endpoints": {"controller": "http://127.0.0.1:8401", "gateway": "http://127.0.0.1:8400"},
    }


def _node(name: str, devices: list[str], serving: int) -> dict[str, Any]:
    own = [d for d in devices if d.startswith(name)]
    return {
        "name": name,
        "address": f"127.0.0.1{name[1:]}",
        "devices": [
            {"id": d[3:], "kind": "cpu", "hbm_bytes": PAGE * TOTAL_PAGES, "page_bytes": PAGE}
            for d in own
        ],
        "store_address": "127.0.0.11:4000",
        "agent_pid": 4000 + int(name[1:]),
        "started_at": NOW - 300.0,
        "page_kind": "4KiB",
        "usage": [_usage(d, devices.index(d) < serving, serving) for d in own],
    }


def _usage(device: str, is_used: bool, serving: int) -> dict[str, Any]:
    used = {"experts": 576 // serving, "shared": 288, "kv": 2048} if is_used else {}
    reserved = 0 if is_used else 96
    return {
        "device": device[3:],
        "page_bytes": PAGE,
        "total": TOTAL_PAGES,
        "free": TOTAL_PAGES - sum(used.values()) - reserved,
        "reserved": reserved,
        "used": used,
    }


def sample_pages(device: str) -> dict[str, Any]:
    """What the API tells about the pages of a device that serves at width 4."""
    node, _, name = device.partition("/")
    rank = 2 * (int(node[1:]) - 1) + int(name[1:])
    at, spans = 288, [[0, 288, "chat/shared", "weights that are no routed experts"]]
    for layer in range(LAYERS):
        first = rank * EXPERTS // 4
        what = f"layer {layer}, experts {first}-{first + EXPERTS // 4 - 1}"
        spans.append([at, 36, "chat/experts", what])
        at += 36
    for count, what in ((96, "KV of r17, r21"), (40, "KV of r24"), (1912, "KV, no request")):
        spans.append([at, count, "chat/kv", what])
        at += count
    spans.append([at, TOTAL_PAGES - at, "", "free"])
    sizes = {"page_bytes": PAGE, "total": TOTAL_PAGES, "reserved": 0}
    return {"node": node, "device": name, **sizes, "spans": spans}


def _model(
    width: int, phase: str, tick: int, devices: list[str], shape: tuple[int, int]
) -> dict[str, Any]:
    """`devices` are those that serve; `shape` is (layers, experts)."""
    serving, (layers, experts) = len(devices), shape
    is_running = width != 2 and phase not in ("done", "forfeited")
    owners = [[[(e * serving) // experts] for e in range(experts)] for _ in range(layers)]
    return {
        "name": "chat",
        "generation": 2,
        "spec": {"parallelism": {"experts": width}},
        "status": _status(width, serving, is_running),
        "placement": {
            "model": "chat",
            "epoch": serving,
            "ranks": devices,
            "owners": owners,
            "instances": [1] * serving,
        },
        "workers": [_worker(rank, devices[rank], serving) for rank in range(serving)],
        "stats": [_stats(rank, devices[rank], serving, tick, owners) for rank in range(serving)],
        "active": _change(width, phase) if is_running else None,
    }


def _status(width: int, serving: int, is_running: bool) -> dict[str, Any]:
    return {
        "model": "chat",
        "observed_generation": 2,
        "desired_width": width,
        "admitted_width": width,
        "allocated_width": serving,
        "joined_width": serving,
        "effective_width": serving,
        "epoch": serving,
        "failed_generation": 0,
        "conditions": [
            _condition("Admitted", "Placed", "fits"),
            _condition("Ready", "Serving", f"serves on {serving} devices"),
            _condition("Progressing", "Scaling" if is_running else "Idle", ""),
        ],
    }


def _condition(kind: str, reason: str, message: str) -> dict[str, Any]:
    return {
        "type": kind,
        "status": "False" if reason == "Idle" else "True",
        "reason": reason,
        "message": message,
        "observed_generation": 2,
        "changed_at": NOW - 60.0,
    }


def _worker(rank: int, device: str, epoch: int) -> dict[str, Any]:
    return {
        "model": "chat",
        "rank": rank,
        "device": device,
        "instance": 1,
        "epoch": epoch,
        "state": "serving",
        "address": f"127.0.0.1{device[1]}:{4100 + rank}",
        "pid": 4200 + rank,
        "message": "",
    }


def _stats(
    rank: int, device: str, epoch: int, tick: int, owners: list[list[list[int]]]
) -> dict[str, Any]:
    tokens = [
        [
            (7 * e * (layer + 3) + 5 * tick) % 41 if ranks[0] == rank else 0
            for e, ranks in enumerate(row)
        ]
        for layer, row in enumerate(owners)
    ]
    return {
        "model": "chat",
        "rank": rank,
        "device": device,
        "epoch": epoch,
        "running": 3,
        "waiting": rank % 2,
        "tokens_out": 5000 + 60 * tick + (0, 12, 4, 20, 8, 16, 2)[tick % 7],
        "tokens_in": 800,
        "steps": 4000,
        "step_ms_p50": 8.4 + rank,
        "step_ms_p99": 14.9 + rank,
        "kv_blocks_used": 40,
        "kv_blocks_total": 256,
        "expert_tokens": tokens,
    }


def _created() -> dict[str, Any]:
    begin = NOW - 290.0
    times = {"prepare": begin, "commit": begin + 2.1, "retire": begin + 2.2, "done": begin + 2.3}
    actual = {"pause_ms": 0.0, "bytes_moved": 9437184.0}
    return _transition("up-1", "create", (0, 2), times, actual) | {"accepted_at": begin}


def _change(width: int, phase: str) -> dict[str, Any]:
    begin = NOW - 3.0
    order = ["prepare", "commit", "retire", "done"]
    marks = [begin + 0.1, begin + 1.9, begin + 2.0, begin + 2.4]
    reached = order.index(phase) + 1 if phase in order else 1
    times = dict(zip(order[:reached], marks[:reached], strict=True))
    actual = {"bytes_moved": 4718592.0, "pause_ms": 6.2} if reached >= 3 else {}
    if phase == "forfeited":
        times |= {"forfeit": begin + 1.5, "forfeited": begin + 1.7}
    changed = {"phase": phase, "accepted_at": begin, "deadline_at": begin + 60.0}
    return _transition("scale-2", "scale", (2, width), times, actual) | changed


def _transition(
    name: str,
    kind: str,
    widths: tuple[int, int],
    times: dict[str, float],
    actual: dict[str, float],
) -> dict[str, Any]:
    accepted = times["prepare"]
    return {
        "operation_id": name,
        "model": "chat",
        "kind": kind,
        "phase": "done",
        "generation": 2,
        "from_width": widths[0],
        "to_width": widths[1],
        "accepted_at": accepted,
        "phase_at": times,
        "deadline_at": accepted + 60.0,
        "prediction": {
            "bytes_moved": 4718592,
            "bytes_lower_bound": 4718592,
            "shared_bytes_moved": 4718592,
            "peak_bytes": {},
            "prepare_s": 1.5,
            "pause_ms": 8.0,
            "steps_cross_node": 32,
        },
        "actual": actual,
        "reason": "",
        "attempt": 1,
    }


def _events(width: int, phase: str) -> list[dict[str, Any]]:
    found = [
        _event("e1", 295.0, "info", "node/n1", "NodeJoined", "2 devices, 192MiB of HBM"),
        _event("e2", 295.0, "info", "node/n2", "NodeJoined", "2 devices, 192MiB of HBM"),
        _event("e3", 287.0, "info", "model/chat", "CreateDone", "serves on 2 devices, epoch 1"),
    ]
    if width != 2:
        found.append(_event("e4", 3.0, "info", "model/chat", "ScalePrepare", f"2 -> {width}"))
    if phase == "forfeited":
        found.append(_event("e5", 1.3, "warning", "model/chat", "ScaleForfeited", "a worker died"))
    return found


def _event(
    name: str, age_s: float, severity: str, subject: str, reason: str, message: str
) -> dict[str, Any]:
    return {
        "id": name,
        "at": NOW - age_s,
        "severity": severity,
        "subject": subject,
        "reason": reason,
        "message": message,
        "operation_id": "",
    }

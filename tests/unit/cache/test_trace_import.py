"""Other tools' files become traces; what is broken is refused with line and reason, or counted."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moectl.core.errors import RefusedError
from moectl.memory.cache.importers import detect_format, import_trace
from moectl.memory.cache.loads import load_stats, read_loads
from moectl.memory.cache.rows import ImportChoices, warmup_rows
from moectl.memory.cache.stats import check_trace, trace_stats
from moectl.memory.cache.trace import DECODE, PREFILL, load_trace, save_trace


def _per_token(token: int, layer: int, experts: list[int], **extra: Any) -> dict[str, Any]:
    probs = [1.0 / len(experts)] * len(experts)
    return {
        "dataset": "d",
        "problem_id": 0,
        "layer": layer,
        "experts": experts,
        "gating_probs": probs,
        "token_idx": token,
        **extra,
    }


def _lines(path: Path, rows: list[Any]) -> Path:
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")
    return path


def _sound() -> list[dict[str, Any]]:
    return [_per_token(t, layer, [t % 4, 4 + layer]) for t in range(5) for layer in range(3)]


def test_per_token_lines_become_a_trace(tmp_path: Path) -> None:
    trace = import_trace([_lines(tmp_path / "a.jsonl", _sound())])
    assert trace.experts.shape == (5, 3, 2)
    assert trace.experts[3, 2].tolist() == [3, 6]
    assert trace.experts_per_layer == 7
    assert trace.counts.text() == "rows: 15 read, 15 kept, 0 dropped"
    assert check_trace(trace) == []


def test_files_ordered_by_layer_or_by_token_give_the_same_trace(tmp_path: Path) -> None:
    by_layer = sorted(_sound(), key=lambda row: (row["layer"], row["token_idx"]))
    one = import_trace([_lines(tmp_path / "a.jsonl", _sound())])
    two = import_trace([_lines(tmp_path / "b.jsonl", by_layer)])
    assert np.array_equal(one.experts, two.experts)


def test_a_gzipped_file_reads_like_a_plain_one_and_a_cut_one_is_refused(tmp_path: Path) -> None:
    plain = _lines(tmp_path / "a.jsonl", _sound()).read_bytes()
    packed = tmp_path / "a.jsonl.gz"
    packed.write_bytes(gzip.compress(plain))
    assert import_trace([packed]).tokens == 5
    packed.write_bytes(gzip.compress(plain)[:-20])
    with pytest.raises(RefusedError, match="cut or damaged"):
        import_trace([packed])


def test_a_truncated_line_is_refused_with_its_number_or_dropped_when_asked(tmp_path: Path) -> None:
    rows: list[Any] = _sound()
    rows[7] = json.dumps(rows[7])[:-9]
    path = _lines(tmp_path / "a.jsonl", rows)
    with pytest.raises(RefusedError, match=r"a\.jsonl:8: "):
        import_trace([path])
    trace = import_trace([path], ImportChoices(repair=True))
    counts = trace.counts
    assert (counts.read, counts.kept, counts.unreadable, counts.incomplete) == (15, 12, 1, 2)


def test_a_missing_layer_names_the_token_and_is_dropped_when_asked(tmp_path: Path) -> None:
    rows = [row for row in _sound() if (row["token_idx"], row["layer"]) != (2, 1)]
    path = _lines(tmp_path / "a.jsonl", rows)
    with pytest.raises(RefusedError, match=r"token 2 of request 0 lacks layers \[1\]"):
        import_trace([path])
    trace = import_trace([path], ImportChoices(repair=True))
    assert (trace.tokens, trace.counts.incomplete) == (4, 2)


@pytest.mark.parametrize("experts", [[1, 9], [-1, 2], [3, 3]])
def test_wrong_ids_are_refused_with_the_line(tmp_path: Path, experts: list[int]) -> None:
    rows = _sound()
    rows[4]["experts"] = experts
    path = _lines(tmp_path / "a.jsonl", rows)
    with pytest.raises(RefusedError, match=r"a\.jsonl:5: "):
        import_trace([path], ImportChoices(experts_per_layer=8))
    trace = import_trace([path], ImportChoices(repair=True, experts_per_layer=8))
    assert (trace.tokens, trace.counts.out_of_range) == (4, 1)


def test_repeated_rows_are_refused_or_counted(tmp_path: Path) -> None:
    path = _lines(tmp_path / "a.jsonl", [*_sound(), _sound()[0]])
    with pytest.raises(RefusedError, match="repeat a token and layer"):
        import_trace([path])
    assert import_trace([path], ImportChoices(repair=True)).counts.duplicate == 1


def test_rows_of_other_widths_are_refused(tmp_path: Path) -> None:
    rows = _sound()
    rows[6]["experts"], rows[6]["gating_probs"] = [1, 2, 3], [0.3, 0.3, 0.4]
    with pytest.raises(RefusedError, match=r":7: 3 experts, 2 in the rows before"):
        import_trace([_lines(tmp_path / "a.jsonl", rows)])


def test_unknown_mixed_and_missing_files_are_refused(tmp_path: Path) -> None:
    known = _lines(tmp_path / "a.jsonl", _sound())
    vllm = _lines(tmp_path / "v.jsonl", [_route(0, 0, [1, 2])])
    with pytest.raises(RefusedError, match="formats are mixed"):
        import_trace([known, vllm])
    for name, text in {"x.txt": "hello\n", "y.json": '{"a": 1}\n', "z": ""}.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
        with pytest.raises(RefusedError):
            import_trace([tmp_path / name])
    with pytest.raises(RefusedError, match="cannot be read"):
        import_trace([tmp_path / "absent"])


def _route(number: int, layer: int, experts: list[int]) -> dict[str, Any]:
    return {
        "type": "route",
        "req_id": "r1",
        "token_idx": number,
        "layer": layer,
        "topk_ids": experts,
        "topk_weights": [0.5] * len(experts),
    }


def _engine_log(layer: int) -> list[Any]:
    """Warm-up, a prefill of 20 rows, then 30 passes of 4 live requests."""
    rows: list[Any] = [{"type": "meta", "model_id": "m"}]
    rows += [_route(i, layer, [7, 8]) for i in range(128)]
    rows += [_route(i, layer, [i % 5, 5 + i % 4]) for i in range(20)]
    for at in range(30):
        rows += [_route(lane, layer, [(lane + at) % 5, 5 + lane]) for lane in range(4)]
    return rows


def test_an_engine_log_loses_its_warmup_and_gets_requests_and_phases(tmp_path: Path) -> None:
    files = [_lines(tmp_path / f"layer{n}.jsonl", _engine_log(n)) for n in (0, 6)]
    trace = import_trace(files)
    assert (trace.layers, trace.model, trace.counts.warmup) == ((0, 6), "m", 256)
    assert trace.tokens == 20 + 120
    assert (trace.phases == PREFILL).sum() == 20
    assert trace.phases[20:].tolist() == [DECODE] * 120
    assert trace.requests[20:28].tolist() == [0, 1, 2, 3] * 2
    assert trace.requests[:20].tolist() == [4] * 20
    assert trace.of_phase("decode").of_request(2).tokens == 30
    kept = import_trace(files, ImportChoices(keep_warmup=True))
    assert kept.tokens == 128 + 140
    assert any("warm-up" in line for line in check_trace(kept))


def test_only_long_leading_runs_count_as_warmup() -> None:
    varied = np.arange(40).reshape(20, 2)
    same = np.ones((63, 2), int)
    assert warmup_rows(np.vstack([same, varied])) == 0
    assert warmup_rows(np.vstack([same, same[:1], varied])) == 64
    assert warmup_rows(np.vstack([varied, same, same])) == 0


def test_npz_arrays_import_and_wrong_shapes_are_refused(tmp_path: Path) -> None:
    experts = np.arange(24).reshape(4, 3, 2) % 8
    np.savez(tmp_path / "a.npz", experts=experts, token_ids=np.arange(4))
    trace = import_trace([tmp_path / "a.npz"])
    assert np.array_equal(trace.experts, experts)
    assert trace.token_ids is not None and trace.token_ids.tolist() == [0, 1, 2, 3]
    np.savez(tmp_path / "b.npz", experts=experts.reshape(12, 2))
    with pytest.raises(RefusedError, match=r"\[tokens, layers, k\]"):
        import_trace([tmp_path / "b.npz"])
    np.savez(tmp_path / "c.npz", other=experts)
    with pytest.raises(RefusedError, match="without experts"):
        import_trace([tmp_path / "c.npz"])


def test_sglang_records_import_and_pickles_are_refused(tmp_path: Path) -> None:
    import torch

    ids = [[[0, 1], [2, 3]], [[4, 5], [6, 7]]]  # [layers][tokens][k]
    record = {"forward_pass_id": 1, "input_ids": [11, 12], "topk_ids_of_layer": ids}
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"records": [record, record]}), encoding="utf-8")
    trace = import_trace([path])
    assert trace.experts.tolist()[:2] == [[[0, 1], [4, 5]], [[2, 3], [6, 7]]]
    assert trace.token_ids is not None and trace.token_ids.tolist() == [11, 12, 11, 12]
    torch.save({"records": [{"topk_ids_of_layer": torch.tensor(ids)}]}, tmp_path / "a.pt")
    with pytest.raises(RefusedError, match="pickle"):
        import_trace([tmp_path / "a.pt"])


def test_summed_loads_are_no_trace_but_have_stats(tmp_path: Path) -> None:
    path = tmp_path / "loads.json"
    path.write_text(json.dumps({"logical_count": [[0, 0], [3, 1], [2, 2]]}), encoding="utf-8")
    with pytest.raises(RefusedError, match="summed loads"):
        import_trace([path])
    stats = load_stats(read_loads(path))
    assert (stats.dense_layers, stats.layers, stats.max_over_mean) == (1, 2, (1.0, 1.5))


def test_a_trace_survives_its_file(tmp_path: Path) -> None:
    trace = import_trace([_lines(tmp_path / "a.jsonl", _sound())])
    save_trace(trace, tmp_path / "t.npz")
    again = load_trace(tmp_path / "t.npz")
    assert np.array_equal(trace.experts, again.experts)
    assert trace.weights is not None and again.weights is not None
    assert np.array_equal(trace.weights, again.weights)
    assert (trace.layers, trace.counts, trace.source) == (again.layers, again.counts, again.source)
    assert detect_format(tmp_path / "t.npz") == "trace"
    broken = tmp_path / "broken.npz"
    broken.write_bytes((tmp_path / "t.npz").read_bytes()[:200])
    with pytest.raises(RefusedError):
        import_trace([broken])


def test_stats_say_what_is_there(tmp_path: Path) -> None:
    stats = trace_stats(import_trace([_lines(tmp_path / "a.jsonl", _sound())]))
    assert (stats.tokens, stats.layers, stats.k, stats.requests) == (5, 3, 2, 1)
    assert stats.repeat_share == pytest.approx(0.5)
    assert (stats.weights, stats.token_ids) == (True, False)

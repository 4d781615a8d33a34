"""Real ranks for test_exchange_contract: forked from one process that has imported torch once.

Run as a program: a kind and a scenario's name per line on stdin, one JSON list (a result per rank)
per line on stdout. The parent keeps one thread, so that forking is safe; the store
of the gloo groups lives in a child of its own.
"""

import contextlib
import json
import mmap
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import distributed

from moectl.agents.engine.comm.base import CONTROL_WORDS, Bounds, SoloExchange
from moectl.agents.engine.comm.gloo import GlooExchange, GlooGroup, Rendezvous
from moectl.agents.engine.comm.mixed import MixedExchange
from moectl.agents.engine.comm.shm import ShmExchange, region_bytes
from moectl.agents.engine.dispatch import DistributedMoe, exchange_bytes_max
from moectl.agents.engine.moe import ExpertSlots, LocalMoe
from moectl.core.errors import EngineError, ExchangeBrokenError

PAYLOAD = 1 << 20
NODES = {  # kind -> node of each rank
    "solo": (0,),
    "shm": (0, 0, 0, 0),
    "gloo": (0, 1, 2),
    "mixed-2+2": (0, 0, 1, 1),
    "mixed-2+1": (0, 0, 1),
}
DEADLINE_S = 30.0


def make_channel(ranks):
    memfd = os.memfd_create("channel")
    os.ftruncate(memfd, ranks * region_bytes(PAYLOAD))
    flags = os.EFD_NONBLOCK | os.EFD_CLOEXEC
    return SimpleNamespace(
        memfd=memfd, eventfds=[[os.eventfd(0, flags) for _ in range(ranks)] for _ in range(ranks)]
    )


def drop_channel(channel):
    os.close(channel.memfd)
    for row in channel.eventfds:
        for fd in row:
            os.close(fd)


def make_exchange(kind, rank, channels, store_port, name):
    nodes = NODES[kind]
    if kind == "solo":
        return SoloExchange()
    near = [r for r, node in enumerate(nodes) if node == nodes[rank]]
    local = None
    if len(near) > 1:
        local = ShmExchange(
            channels[nodes[rank]], near.index(rank), len(near), region_bytes(PAYLOAD), DEADLINE_S
        )
    if kind == "shm":
        return local
    address = f"127.0.0.{11 + nodes[rank]}"
    meeting = Rendezvous(f"127.0.0.1:{store_port}", name, rank, len(nodes), address)
    group = GlooGroup(meeting, DEADLINE_S)
    far = [r for r in range(len(nodes)) if r not in near]
    if local is None and len(near) == 1 and kind == "gloo":
        return GlooExchange(group, None, DEADLINE_S)
    return MixedExchange(local, near, GlooExchange(group, far, DEADLINE_S))


def words(rank, call):
    return [rank, call, -1, 1 << 62] + [call * rank] * (CONTROL_WORDS - 4)


def part(sender, receiver, call):
    """What a rank sends another in a call: size and content depend on all three."""
    generator = torch.Generator().manual_seed(sender * 1000003 + receiver * 1009 + call)
    size = int(torch.randint(0, 5000, (1,), generator=generator))
    if (sender + call) % 5 == 0:
        size = 0
    return torch.randint(0, 256, (size,), generator=generator, dtype=torch.uint8)


def gather(exchange):
    for call in range(30):
        got = exchange.gather_control(words(exchange.rank, call))
        assert got == [tuple(words(rank, call)) for rank in range(exchange.size)]
    return "ok"


def all_to_all(exchange):
    ranks = range(exchange.size)
    for call in range(60):
        parts = [part(exchange.rank, peer, call) for peer in ranks]
        expected = [part(peer, exchange.rank, call) for peer in ranks]
        # A bound is 0 exactly where nothing is sent, and often longer than what is sent.
        out_max, in_max = (
            [one.numel() + call % 7 * 100 if one.numel() else 0 for one in given]
            for given in (parts, expected)
        )
        got = exchange.all_to_all(parts, Bounds(out_max, in_max))
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True)), call
        if call % 3 == 0:
            assert exchange.gather_control(words(exchange.rank, call))[0] == tuple(words(0, call))
    return "ok"


def empty(exchange):
    nothing = [torch.empty(0, dtype=torch.uint8)] * exchange.size
    for _ in range(10):
        got = exchange.all_to_all(nothing, Bounds([0] * exchange.size, [0] * exchange.size))
        assert [one.numel() for one in got] == [0] * exchange.size
    return "ok"


def abort_by_peer(exchange):
    """The last rank aborts while the others wait for it."""
    exchange.gather_control(words(exchange.rank, 0))
    started = time.monotonic()
    try:
        if exchange.rank == exchange.size - 1:
            time.sleep(0.3)
            exchange.abort("told to")
        exchange.gather_control(words(exchange.rank, 1))
    except ExchangeBrokenError:
        return "broken" if time.monotonic() - started < DEADLINE_S / 2 else "broken late"
    return "not broken"


def abort_from_thread(exchange):
    """Rank 0 waits for peers that never come, until its own thread aborts."""
    exchange.gather_control(words(exchange.rank, 0))
    if exchange.rank:
        time.sleep(1.0)
        return "broken"
    started = time.monotonic()
    timer = threading.Timer(0.2, exchange.abort, ("peer lost",))
    timer.start()
    try:
        while True:
            exchange.gather_control(words(exchange.rank, 1))
    except ExchangeBrokenError as error:
        timer.join()
        try:
            exchange.gather_control(words(exchange.rank, 2))
        except ExchangeBrokenError:
            late = time.monotonic() - started > DEADLINE_S / 2
            return "broken late" if late else f"broken {'peer lost' in str(error)}"
    return "not broken"


def deadline(exchange):
    """The last rank stays away: the others give up at their deadline."""
    exchange.gather_control(words(exchange.rank, 0))
    if exchange.rank == exchange.size - 1:
        time.sleep(2.0)
        return "broken"
    try:
        exchange.gather_control(words(exchange.rank, 1), deadline_s=0.3)
    except ExchangeBrokenError:
        return "broken"
    return "not broken"


def killed(exchange):
    """The last rank dies by SIGKILL; an agent would tell the others, here a timer does."""
    exchange.gather_control(words(exchange.rank, 0))
    if exchange.rank == exchange.size - 1:
        os.kill(os.getpid(), signal.SIGKILL)
    timer = threading.Timer(0.5, exchange.abort, ("peer lost",))
    timer.start()
    try:
        exchange.gather_control(words(exchange.rank, 1))
        return "not broken"
    except ExchangeBrokenError:
        return "broken"
    finally:
        timer.join()


def unheard_abort(exchange):
    """Gloo has lost rank 0's call when rank 0 aborts."""
    return lost_call(exchange, lambda peers: exchange.abort("told to"))


def unheard_death(exchange):
    """Gloo has lost rank 0's call when the others die, and nobody tells rank 0."""
    return lost_call(exchange, kill)


def lost_call(exchange, end):
    """Rank 0 calls on connections that are dead before gloo's own thread can know.

    As in a race with a dying peer, but each time: the connections take no more bytes, and the peers
    have entered the call and are stopped, so that their ends stay open.
    """
    pids = [each[0] for each in exchange.gather_control([os.getpid()] * CONTROL_WORDS)]
    peers = pids[1:]
    if exchange.rank:
        exchange.post_control(words(exchange.rank, 1))
        time.sleep(0.3)  # gloo tells rank 0 meanwhile that it may send
        os.kill(os.getpid(), signal.SIGSTOP)
    until = time.monotonic() + DEADLINE_S / 2
    while not all(is_stopped(pid) for pid in peers):
        assert time.monotonic() < until
        time.sleep(0.01)
    for connection in connections():
        connection.shutdown(socket.SHUT_WR)
    timer = threading.Timer(0.5, end, (peers,))
    timer.start()
    started = time.monotonic()
    try:
        exchange.gather_control(words(0, 1))
        return "done"
    except ExchangeBrokenError:
        exchange.close()
        return "broken" if time.monotonic() - started < DEADLINE_S / 2 else "broken late"
    finally:
        timer.join()
        kill(peers)


def kill(pids):
    for pid in pids:
        os.kill(pid, signal.SIGKILL)  # the dead keep their ids until their parent has all results


def is_stopped(pid):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def connections():
    """Duplicates of this process's connected sockets."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            each = socket.socket(fileno=os.dup(int(name)))
            each.getpeername()
            found.append(each)
    return found


def too_large(exchange):
    exchange.gather_control(words(exchange.rank, 0))
    parts = [torch.zeros(2 * PAYLOAD, dtype=torch.uint8)] * exchange.size
    sizes = [PAYLOAD] * exchange.size
    try:
        exchange.all_to_all(parts, Bounds(sizes, sizes))
    except EngineError as error:
        time.sleep(0.5)  # the others refuse too, before this one leaves
        return type(error).__name__
    return "ok"


LAYERS, EXPERTS, CHOSEN, HIDDEN, INNER, ROWS_MAX = 2, 6, 2, 32, 16, 24


def expert_slots(pairs):
    """Slots with the weights of some (layer, expert); the same on every rank."""
    generator = torch.Generator().manual_seed(3)
    size = (LAYERS, EXPERTS, 3 * INNER * HIDDEN)
    every = torch.randn(size, generator=generator)
    flat = torch.cat([every[pair] for pair in pairs])
    shapes = {"gate_up": (2 * INNER, HIDDEN), "down": (HIDDEN, INNER)}
    table = {pair: slot for slot, pair in enumerate(pairs)}
    return ExpertSlots.over(flat, 3 * INNER * HIDDEN, shapes, table, (LAYERS, EXPERTS))


def copies(exchange):
    """Experts with one to all copies, rows that differ by rank and step: the bits of one rank."""
    size, rank = exchange.size, exchange.rank
    assert exchange_bytes_max(ROWS_MAX, size, CHOSEN, HIDDEN * 4) < PAYLOAD
    owners = [
        [sorted({(e + at + i) % size for i in range(1 + e % size)}) for e in range(EXPERTS)]
        for at in range(LAYERS)
    ]
    every = [(layer, e) for layer in range(LAYERS) for e in range(EXPERTS)]
    alone = LocalMoe(expert_slots(every))
    mine = [(layer, e) for layer, e in every if rank in owners[layer][e]]
    moe, by_copy = DistributedMoe(exchange, expert_slots(mine), owners), 0
    for step in range(20):
        rows = [(7 * step + 5 * peer) % (ROWS_MAX + 1) * (step % 4 != peer) for peer in range(size)]
        generator = torch.Generator().manual_seed(100 * step + rank)
        x = torch.randn(rows[rank], HIDDEN, generator=generator)
        # Low ids are wanted far more often, so that shares have to be unequal.
        odds = torch.arange(EXPERTS, 0, -1.0).pow(3).expand(max(rows[rank], 1), -1)
        ids = torch.multinomial(odds, CHOSEN, generator=generator)[: rows[rank]]
        weights = torch.rand(rows[rank], CHOSEN, generator=generator)
        moe.begin_step(rows)
        for layer in range(LAYERS):
            got = moe.run(layer, x, ids, weights)
            assert torch.equal(got, alone.run(layer, x, ids, weights)), (step, layer)
    for layer, e in mine:
        by_copy += int(moe.computed_LE[layer, e] > 0 and len(owners[layer][e]) > 1)
    return f"computed as one of several: {by_copy > 0}"


SCENARIOS = {
    function.__name__: function
    for function in (
        gather,
        all_to_all,
        empty,
        abort_by_peer,
        abort_from_thread,
        deadline,
        killed,
        unheard_abort,
        unheard_death,
        too_large,
        copies,
    )
}


def run_rank(kind, rank, channels, store_port, name, out_fd):
    torch.set_num_threads(1)
    try:
        exchange = make_exchange(kind, rank, channels, store_port, name)
        result = SCENARIOS[name.split("/")[0]](exchange)
        if "broken" not in result and exchange.size > 1 and name.split("/")[0] != "too_large":
            exchange.gather_control([0] * CONTROL_WORDS)  # nobody leaves before the last has read
            time.sleep(0.05)
        exchange.close()
        exchange.close()
    except Exception as error:  # the test shows whatever went wrong in a rank
        result = f"{type(error).__name__}: {error}"
    os.write(out_fd, json.dumps(result).encode())
    os._exit(0)


def run_scenario(kind, scenario, store_port):
    nodes = NODES[kind]
    channels = {node: make_channel(nodes.count(node)) for node in set(nodes)}
    children = []
    for rank in range(len(nodes)):
        read_fd, write_fd = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(read_fd)
            run_rank(kind, rank, channels, store_port, scenario, write_fd)
        os.close(write_fd)
        children.append((pid, read_fd))
    results = []
    for pid, read_fd in children:
        text = b""
        while piece := os.read(read_fd, mmap.PAGESIZE):
            text += piece
        os.close(read_fd)
        status = os.waitpid(pid, 0)[1]
        results.append(json.loads(text) if text else f"died of signal {os.WTERMSIG(status)}")
    for channel in channels.values():
        drop_channel(channel)
    return results


def fork_store():
    """A child that hosts the store until our pipe closes; returns (port, keep-alive fd)."""
    port_r, port_w = os.pipe()
    life_r, life_w = os.pipe()
    if os.fork() == 0:
        os.close(life_w)
        store = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        os.write(port_w, str(store.port).encode())
        os.read(life_r, 1)
        os._exit(0)
    port = int(os.read(port_r, 16))
    return port, life_w


def main():
    store_port, _life = fork_store()
    for number, line in enumerate(sys.stdin):
        kind, scenario = line.split()
        print(json.dumps(run_scenario(kind, f"{scenario}/{number}", store_port)), flush=True)


if __name__ == "__main__":
    main()

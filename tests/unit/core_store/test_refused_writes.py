"""A write that etcd refused is sent again only while an answer can still come in time."""

import asyncio
import time

import grpc
import grpc.aio
import pytest

from moectl.core.errors import StoreNoLeaderError
from moectl.core.store.etcd import EtcdStore
from moectl.core.store.etcd_connection import ANSWER_S
from moectl.core.store.etcd_failures import NO_LEADER

DEADLINE_S = 1.5


class NoLeader(grpc.GenericRpcHandler):
    """A member without a leader: refuses writes, until it would leave one without an answer."""

    def __init__(self, silent_at_s: float) -> None:
        self.refusals = 0
        self._silent_at_s = silent_at_s

    def service(self, handler_call_details: object) -> grpc.RpcMethodHandler:
        return grpc.unary_unary_rpc_method_handler(self._answer)

    async def _answer(self, request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        if time.monotonic() >= self._silent_at_s:
            await asyncio.sleep(DEADLINE_S)
        self.refusals += 1
        await context.abort(grpc.StatusCode.UNAVAILABLE, NO_LEADER)
        raise AssertionError("abort raises")


async def test_a_write_refused_until_its_time_is_nearly_up_is_not_left_in_doubt() -> None:
    # Silent for the last moments: what is sent then can only end in doubt.
    handler = NoLeader(time.monotonic() + DEADLINE_S - ANSWER_S / 2)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    store = EtcdStore([f"127.0.0.1:{port}"], deadline_s=DEADLINE_S)
    try:
        with pytest.raises(StoreNoLeaderError):
            await store.put("/t/a", "1")
        assert handler.refusals >= 2
    finally:
        await store.close()
        await server.stop(None)

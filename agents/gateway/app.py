"""How is a gateway put together and run? `python -m moectl.agents.gateway.app --config FILE`.

Composition only: config, store, directory with its watches, routes, error handlers, uvicorn. With
the store away it serves on from what it last saw.
"""

import argparse
import asyncio
import contextlib
import logging
import os
import socket
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from ...core import heap
from ...core.errors import MoectlError, UsageError
from ...core.records import EndpointRecord, Keys, to_json
from ...core.store.protocol import Store
from ..follow import follow
from ..publish import Publisher
from .api_errors import ApiError, failed
from .config import GatewayConfig, load_gateway_config
from .counting import CountAnswers
from .fleet import Directory
from .link import Heartbeat
from .openapi import describe
from .request_ids import RequestIds
from .routes import Gateway, build_router
from .transport import ClientGone

log = logging.getLogger("moectl.gateway")

LEASE_TTL_S = 10.0  # only the endpoint record hangs on it
SHUTDOWN_S = 5  # what running requests get after SIGTERM
BACKLOG = 512
CLIENT_GONE_STATUS = 499  # never sent; what the metrics call a request whose client left


def build_app(config: GatewayConfig, store: Store, url: str) -> FastAPI:
    """The ASGI application; its lifespan follows the store."""
    keys = Keys(config.cluster)
    secret = Path(config.secret_file).read_text(encoding="utf-8").strip()
    directory = Directory(
        keys,
        secret,
        tokens_max=config.buffered_tokens_max,
        heartbeat=Heartbeat(config.heartbeat_s, config.heartbeats_missed_max),
    )
    gateway = Gateway(config, directory)

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        publisher = Publisher(store, LEASE_TTL_S)
        publisher.put(
            keys.endpoint("gateway"), to_json(EndpointRecord("gateway", url, os.getpid()))
        )
        tasks = [asyncio.create_task(_follow(store, directory, p)) for p in directory.prefixes]
        tasks.append(asyncio.create_task(publisher.run()))
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await directory.close()
            await publisher.close()

    app = FastAPI(title="moectl gateway", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.include_router(build_router(gateway))
    _add_error_handlers(app)
    app.add_middleware(CountAnswers, gateway=gateway)
    app.add_middleware(RequestIds)
    describe(app)
    app.state.gateway = gateway
    return app


async def _follow(store: Store, directory: Directory, prefix: str) -> None:
    def apply(key: str, value: bytes | None) -> None:
        directory.apply(prefix, key, value)

    await follow(store, prefix, apply, on_batch=lambda: directory.loaded.add(prefix))


def _add_error_handlers(app: FastAPI) -> None:
    async def on_api_error(_request: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        return JSONResponse(error.body(), status_code=error.status, headers=error.headers())

    async def on_http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        code = {404: "unknown_url", 405: "method_not_allowed"}.get(error.status_code, "http_error")
        message = f"{error.detail}: {request.method} {request.url.path[:200]}"
        return await on_api_error(request, ApiError(error.status_code, message, code=code))

    async def on_moectl_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, MoectlError)
        log.error("request failed: %s", error)
        return await on_api_error(request, failed(error.message))

    async def on_gone(_request: Request, _error: Exception) -> Response:
        return Response(status_code=CLIENT_GONE_STATUS)

    async def on_bug(request: Request, error: Exception) -> Response:
        name = request.scope["state"].get("request_id")
        log.error("request %s failed by a bug", name, exc_info=error)
        return await on_api_error(request, failed("the gateway failed; its log has the details"))

    app.add_exception_handler(ApiError, on_api_error)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(MoectlError, on_moectl_error)
    app.add_exception_handler(ClientGone, on_gone)
    app.add_exception_handler(Exception, on_bug)


def bind(config: GatewayConfig) -> socket.socket:
    """The listening socket; raises UsageError when the port is taken."""
    try:
        return socket.create_server((config.host, config.port), backlog=BACKLOG, reuse_port=False)
    except OSError as error:
        raise UsageError(
            f"gateway: cannot listen on {config.host}:{config.port}: {error.strerror}",
            next_step="choose another port, or stop what listens there",
        ) from error


def main(argv: list[str] | None = None) -> int:
    """Run a gateway until SIGTERM or SIGINT; returns the exit code."""
    parser = argparse.ArgumentParser(description="OpenAI-compatible front door of a moectl fleet")
    parser.add_argument("--config", type=Path, required=True)
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
        stream=sys.stderr,
    )
    try:
        config = load_gateway_config(parser.parse_args(argv).config)
        heap.settle()
        asyncio.run(serve(config, bind(config)))
    except MoectlError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


async def serve(config: GatewayConfig, listener: socket.socket) -> None:
    """Serve on a bound socket until told to stop."""
    from ...core.store.etcd import EtcdStore  # grpc is imported only by who runs a gateway

    store = EtcdStore(list(config.etcd), security=config.etcd_security)
    host, port = listener.getsockname()[:2]
    app = build_app(config, store, f"http://{host}:{port}")
    server = uvicorn.Server(
        uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=SHUTDOWN_S)
    )
    log.info("listening on %s:%d for cluster %s", host, port, config.cluster)
    started_s = time.monotonic()
    await server.serve(sockets=[listener])
    await store.close()
    log.info("stopped after %.0f s", time.monotonic() - started_s)


if __name__ == "__main__":
    sys.exit(main())

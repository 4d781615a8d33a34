"""What does a status code of etcd mean to a caller? One table from grpc's words to our errors.

The question that matters is always the same: can the request have been carried out? `no leader`,
`too many requests` and a stale token are refusals before anything ran, so even a write may be sent
again after them; everything that is merely an absence of an answer may have happened.
"""

import grpc
import grpc.aio

from ..errors import (
    AuthError,
    LeaseLostError,
    MoectlError,
    StoreError,
    StoreNoLeaderError,
    StoreQuotaError,
    StoreUnavailableError,
)

NO_ANSWER = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.ABORTED,
    }
)
# etcd's texts; it has one code for many causes. Stable from 3.4 to 3.6.
NO_LEADER = "etcdserver: no leader"
TOO_MANY = "etcdserver: too many requests"
NO_SPACE = "database space exceeded"
STALE_TOKEN = ("invalid auth token", "revision in header is old", "user name is empty")


class OutOfRangeError(StoreError):
    """etcd refused a revision: compacted or in the future. The caller finds out which."""


class StaleTokenError(AuthError):
    """The token is too old for etcd; nothing was done. Ask for another one and send again."""


def translate(error: grpc.aio.AioRpcError, where: str) -> MoectlError:
    """Our error for grpc's."""
    code, details = error.code(), error.details() or ""
    text = f"{where}: {details or code.name} ({code.name})"
    if any(mark in details for mark in STALE_TOKEN):
        return StaleTokenError(text, next_step="check the user that etcd was given")
    if NO_LEADER in details:
        return StoreNoLeaderError(text, next_step="retry; more than half of etcd must be up")
    if code in NO_ANSWER:
        return StoreUnavailableError(text, next_step="retry; check etcd if it lasts")
    if code is grpc.StatusCode.NOT_FOUND:  # of all that we call, only leases are "not found"
        return LeaseLostError(text, next_step="take a new lease")
    if code is grpc.StatusCode.OUT_OF_RANGE:
        return OutOfRangeError(text)
    if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
        return AuthError(text, next_step="check the user that etcd was given")
    if "authentication failed" in details:
        return AuthError(text, next_step="check the user and password file that etcd was given")
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and NO_SPACE in details:
        return StoreQuotaError(
            text, next_step="compact and defragment etcd, then `etcdctl alarm disarm`"
        )
    if TOO_MANY in details:
        return StoreNoLeaderError(text, next_step="retry; etcd has more to do than it can")
    return StoreError(text)

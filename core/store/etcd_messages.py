"""How do our words look on etcd's wire, and its answers in our words? Pure translation, no I/O.

The only file, with the generated messages, that knows etcd's field names.
"""

from dataclasses import dataclass
from typing import Any

from . import etcd_wire_pb2 as wire
from .protocol import (
    Compare,
    CompareTarget,
    EventType,
    KeyValue,
    Op,
    OpKind,
    OpResult,
    TxnResult,
    WatchEvent,
)


@dataclass(frozen=True, slots=True)
class Method:
    """A remote procedure: its path, and the types of its two messages."""

    path: str
    request: Any
    response: Any


RANGE = Method("/etcdserverpb.KV/Range", wire.RangeRequest, wire.RangeResponse)
PUT = Method("/etcdserverpb.KV/Put", wire.PutRequest, wire.PutResponse)
DELETE = Method("/etcdserverpb.KV/DeleteRange", wire.DeleteRangeRequest, wire.DeleteRangeResponse)
TXN = Method("/etcdserverpb.KV/Txn", wire.TxnRequest, wire.TxnResponse)
COMPACT = Method("/etcdserverpb.KV/Compact", wire.CompactionRequest, wire.CompactionResponse)
WATCH = Method("/etcdserverpb.Watch/Watch", wire.WatchRequest, wire.WatchResponse)
LEASE_GRANT = Method(
    "/etcdserverpb.Lease/LeaseGrant", wire.LeaseGrantRequest, wire.LeaseGrantResponse
)
LEASE_REVOKE = Method(
    "/etcdserverpb.Lease/LeaseRevoke", wire.LeaseRevokeRequest, wire.LeaseRevokeResponse
)
LEASE_KEEP_ALIVE = Method(
    "/etcdserverpb.Lease/LeaseKeepAlive", wire.LeaseKeepAliveRequest, wire.LeaseKeepAliveResponse
)
STATUS = Method("/etcdserverpb.Maintenance/Status", wire.StatusRequest, wire.StatusResponse)
AUTHENTICATE = Method(
    "/etcdserverpb.Auth/Authenticate", wire.AuthenticateRequest, wire.AuthenticateResponse
)
MEMBER_LIST = Method(
    "/etcdserverpb.Cluster/MemberList", wire.MemberListRequest, wire.MemberListResponse
)
ALARM = Method("/etcdserverpb.Maintenance/Alarm", wire.AlarmRequest, wire.AlarmResponse)


def range_bounds(prefix: str) -> tuple[bytes, bytes]:
    """First key and end (exclusive) of a prefix; an empty prefix means every key.

    >>> range_bounds("a/")
    (b'a/', b'a0')
    """
    if not prefix:
        return b"\0", b"\0"
    key = prefix.encode()
    # UTF-8 never holds the byte 0xFF, so the last byte can always be counted up.
    return key, key[:-1] + bytes([key[-1] + 1])


def key_value(kv: wire.KeyValue) -> KeyValue:
    """etcd's key in our words."""
    return KeyValue(
        kv.key.decode(), kv.value, kv.create_revision, kv.mod_revision, kv.version, kv.lease
    )


def watch_event(event: wire.Event) -> WatchEvent:
    """etcd's event in our words."""
    deleted = event.type == wire.Event.DELETE
    return WatchEvent(EventType.DELETE if deleted else EventType.PUT, key_value(event.kv))


def comparison(compare: Compare) -> wire.Compare:
    """Our condition as etcd's."""
    message = wire.Compare(result=wire.Compare.EQUAL, key=compare.key.encode())
    if isinstance(compare.expected, bytes):
        message.target, message.value = wire.Compare.VALUE, compare.expected
    elif compare.target is CompareTarget.VERSION:
        message.target, message.version = wire.Compare.VERSION, compare.expected
    elif compare.target is CompareTarget.MOD_REVISION:
        message.target, message.mod_revision = wire.Compare.MOD, compare.expected
    else:
        message.target, message.create_revision = wire.Compare.CREATE, compare.expected
    return message


def operation(op: Op) -> wire.RequestOp:
    """Our operation as etcd's."""
    key = op.key.encode()
    if op.kind is OpKind.PUT:
        put = wire.PutRequest(key=key, value=op.value, lease=op.lease)
        return wire.RequestOp(request_put=put)
    if op.kind is OpKind.GET:
        return wire.RequestOp(request_range=wire.RangeRequest(key=key))
    end = range_bounds(op.key)[1] if op.kind is OpKind.DELETE_PREFIX else b""
    return wire.RequestOp(request_delete_range=wire.DeleteRangeRequest(key=key, range_end=end))


def transaction_result(response: wire.TxnResponse) -> TxnResult:
    """etcd's answer to a transaction in our words."""
    revision = response.header.revision
    results = tuple(_op_result(item, revision) for item in response.responses)
    return TxnResult(response.succeeded, revision, results)


def _op_result(response: wire.ResponseOp, revision: int) -> OpResult:
    kind = response.WhichOneof("response")
    if kind == "response_put":
        return revision
    if kind == "response_delete_range":
        return response.response_delete_range.deleted
    kvs = response.response_range.kvs
    return key_value(kvs[0]) if kvs else None

"""A small Kubernetes API server: objects with resourceVersions, status subresources, watches that may drop.

It holds ModelRollouts and Leases, refuses a write that builds on an old version (409), answers a watch from a
version that it has forgotten with 410 Gone, and ends watches when a test says so.
"""

from __future__ import annotations

import copy
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

_PATH = re.compile(
    r"^/apis/(?P<group>[^/]+)/(?P<version>[^/]+)/namespaces/(?P<namespace>[^/]+)/(?P<plural>[^/]+)"
    r"(?:/(?P<name>[^/]+))?(?P<status>/status)?$"
)
_KINDS = {"modelrollouts": "ModelRollout", "leases": "Lease"}
# Method, and whether it names an object -> the verb of it.
_VERBS = {
    ("GET", False): "list",
    ("GET", True): "get",
    ("POST", False): "create",
    ("PUT", True): "update",
    ("PATCH", True): "patch",
}


class Refused(Exception):
    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code, self.reason = code, reason


class ApiServer:
    """The objects, and what happened to them; `lock` guards everything.

    Attributes:
        conflicts: How many writes were refused because they built on an old version.
        watches: How many watches were begun.
        gone: How many of them were answered 410.
        masked: Whether the next watch gets a proxy's page in the server's place, once.
        cut: How many of them, the first ones, hear nothing more, not even their end: their path was cut.
        overtake: Whether somebody else writes just before the next status is written, once.
        asked: What was asked for over HTTP, as a Role names it: resources, some with `/status`, and verbs.
    """

    def __init__(self) -> None:
        self.lock = threading.Condition()
        self.objects: dict[tuple[str, str], dict[str, Any]] = {}
        self.events: list[tuple[int, str, str, dict[str, Any]]] = []
        self.revision = 0
        self.forgotten = 0
        self.dropped = 0
        self.conflicts = 0
        self.watches = 0
        self.gone = 0
        self.cut = 0
        self.overtake = False
        self.masked = False
        self.asked: set[tuple[str, str]] = set()
        self.url = ""

    def drop_watches(self) -> None:
        """Ends every watch that is open."""
        with self.lock:
            self.dropped += 1
            self.lock.notify_all()

    def forget_events(self) -> None:
        """Forgets the past, as etcd does: a watch from it gets 410 Gone. Ends every watch, too."""
        with self.lock:
            self.revision += 1
            self.forgotten = self.revision
            self.events.clear()
            self.dropped += 1
            self.lock.notify_all()

    def cut_watches(self) -> None:
        """Cuts the paths of all watches that are open; those that begin now are well."""
        with self.lock:
            self.cut = self.watches
            self.lock.notify_all()

    def put(self, plural: str, name: str, value: dict[str, Any], kind: str) -> dict[str, Any]:
        self.revision += 1
        value["metadata"]["resourceVersion"] = str(self.revision)
        self.objects[plural, name] = value
        self.events.append((self.revision, kind, plural, copy.deepcopy(value)))
        self.lock.notify_all()
        return value

    def create(self, plural: str, value: dict[str, Any]) -> dict[str, Any]:
        """Makes an object, as `kubectl create` does."""
        with self.lock:
            name = value["metadata"]["name"]
            if (plural, name) in self.objects:
                raise Refused(409, "AlreadyExists")
            value = copy.deepcopy(value)
            value["metadata"] |= {
                "uid": f"uid-{name}",
                "generation": 1,
                "creationTimestamp": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
            }
            return copy.deepcopy(self.put(plural, name, value, "ADDED"))

    def get(self, plural: str, name: str) -> dict[str, Any]:
        """An object as it is stored."""
        with self.lock:
            if (plural, name) not in self.objects:
                raise Refused(404, "NotFound")
            return copy.deepcopy(self.objects[plural, name])

    def replace(self, plural: str, name: str, value: dict[str, Any], *, status: bool) -> dict[str, Any]:
        with self.lock:
            if status and self.overtake:
                self.overtake = False
                self.patch(plural, name, {})
            stored = self.get(plural, name)
            version = value["metadata"].get("resourceVersion")
            if version is not None and version != stored["metadata"]["resourceVersion"]:
                self.conflicts += 1
                raise Refused(409, "Conflict")
            part = "status" if status else "spec"
            stored[part] = value.get(part)
            return copy.deepcopy(self.put(plural, name, stored, "MODIFIED"))

    def patch(self, plural: str, name: str, value: dict[str, Any]) -> dict[str, Any]:
        """A merge patch of the spec (RFC 7386)."""
        with self.lock:
            stored = self.get(plural, name)
            for field, new in value.get("spec", {}).items():
                if new is None:
                    stored["spec"].pop(field, None)
                else:
                    stored["spec"][field] = new
            return copy.deepcopy(self.put(plural, name, stored, "MODIFIED"))

    def delete(self, plural: str, name: str) -> None:
        """Takes an object away, as `kubectl delete` does."""
        with self.lock:
            value = self.objects[plural, name]
            self.put(plural, name, value, "DELETED")
            del self.objects[plural, name]

    def watch(self, plural: str, since: int, timeout_s: float) -> Iterator[dict[str, Any]]:
        with self.lock:
            self.watches += 1
            if since < self.forgotten:
                self.gone += 1
                status = {
                    "kind": "Status",
                    "apiVersion": "v1",
                    "status": "Failure",
                    "code": 410,
                    "reason": "Expired",
                }
                yield {"type": "ERROR", "object": status | {"message": "too old resource version"}}
                return
            dropped, number = self.dropped, self.watches
        while True:
            with self.lock:
                while number <= self.cut and self.dropped == dropped:
                    self.lock.wait()
                news = [event for event in self.events if event[0] > since and event[2] == plural]
                if not news and self.dropped == dropped and not self.lock.wait(timeout_s):
                    return
                if self.dropped != dropped:
                    return
            for revision, kind, _, value in news:
                since = revision
                yield {"type": kind, "object": value}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: ApiServer

    def log_message(self, *_: Any) -> None:
        pass

    def _body(self) -> dict[str, Any]:
        body: dict[str, Any] = json.loads(self.rfile.read(int(self.headers["content-length"])))
        return body

    def _handle(self) -> None:
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        found = _PATH.match(url.path)
        if found is None or found["plural"] not in _KINDS:
            self._answer(404, {"kind": "Status", "code": 404, "reason": "NotFound", "message": "NotFound"})
            return
        try:
            plural, name, state = found["plural"], found["name"], self.state
            is_watch = self.command == "GET" and name is None and query.get("watch") in ("true", "1")
            with state.lock:
                verb = "watch" if is_watch else _VERBS[self.command, name is not None]
                state.asked.add((plural + (found["status"] or ""), verb))
            if is_watch:
                self._stream(state.watch(plural, int(query.get("resourceVersion", 0)), 60.0))
                return
            self._answer(200, self._do(plural, name, bool(found["status"])))
        except Refused as refused:
            status = {"kind": "Status", "apiVersion": "v1", "status": "Failure"}
            self._answer(
                refused.code,
                status | {"code": refused.code, "reason": refused.reason, "message": refused.reason},
            )

    def _do(self, plural: str, name: str | None, status: bool) -> dict[str, Any]:
        state = self.state
        if self.command == "POST":
            return state.create(plural, self._body())
        if name is None:
            with state.lock:
                items = [copy.deepcopy(value) for (kind, _), value in state.objects.items() if kind == plural]
                version = str(state.revision)
            return {"kind": f"{_KINDS[plural]}List", "metadata": {"resourceVersion": version}, "items": items}
        if self.command == "GET":
            return state.get(plural, name)
        if self.command == "PUT":
            return state.replace(plural, name, self._body(), status=status)
        return state.patch(plural, name, self._body())

    do_GET = do_POST = do_PUT = do_PATCH = _handle

    def _answer(self, code: int, value: dict[str, Any]) -> None:
        body = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _stream(self, events: Iterator[dict[str, Any]]) -> None:
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("connection", "close")
        self.end_headers()
        self.close_connection = True
        if self.state.masked:
            self.state.masked = False
            self.wfile.write(b"<html>a proxy is well, and what is behind it is not</html>\n")
            return
        for event in events:
            self.wfile.write(json.dumps(event).encode() + b"\n")
            self.wfile.flush()


@contextmanager
def api_server() -> Iterator[ApiServer]:
    """A running API server; `url` says where."""
    state = ApiServer()
    handler = type("Handler", (_Handler,), {"state": state})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield state
    finally:
        state.drop_watches()
        server.shutdown()
        server.server_close()

"""A small server that speaks as much of the Hugging Face hub's API as quantmill uses: downloads, listings, uploads.

with serving({("dataset", "org/texts"): {"a.txt": b"…"}}) as hub: Hub(endpoint=hub.url, token=TOKEN)
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_of_the_tests"
COMMIT = "c" * 40

_RESOLVE = re.compile(r"/(?:(datasets)/)?([^/]+/[^/]+)/resolve/[^/]+/(.+)")
_API = re.compile(
    r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(tree|preupload|commit|revision|paths-info)(?:/(.*))?)?"
)
_LFS = re.compile(r"/(?:(datasets)/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch")

Key = tuple[str, str]  # "model" or "dataset", org/name


@dataclass
class FakeHub:
    """repos: files by path. blobs: large files that were uploaded, by sha256. stop_after: uploads until the server
    fails, to interrupt one."""

    url: str = ""
    repos: dict[Key, dict[str, bytes]] = field(default_factory=dict)
    private: set[str] = field(default_factory=set)
    blobs: dict[str, bytes] = field(default_factory=dict)
    uploads: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    stop_after: int | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)


@contextmanager
def serving(repos: dict[Key, dict[str, bytes]] | None = None) -> Iterator[FakeHub]:
    hub = FakeHub(repos=dict(repos or {}))

    class Handler(_Handler):
        state = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    state: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(self._read_request())

    def do_GET(self) -> None:
        self._answer(self._read_request())

    def do_POST(self) -> None:
        self._answer(self._read_request())

    def do_PUT(self) -> None:
        self._answer(self._read_request())

    def _read_request(self) -> bytes:
        length = self.headers.get("Content-Length")
        if length is not None:
            return self.rfile.read(int(length))
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return b""
        parts = []
        while n := int(self.rfile.readline().strip(), 16):
            parts.append(self.rfile.read(n))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _answer(self, body: bytes) -> None:
        path = unquote(urlsplit(self.path).path)
        self.state.requests.append(f"{self.command} {path}")
        if match := _RESOLVE.fullmatch(path):
            self._file("dataset" if match[1] else "model", match[2], match[3])
        elif path == "/api/whoami-v2":
            self._whoami()
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif match := _LFS.fullmatch(path):
            self._batch(json.loads(body))
        elif path.startswith("/blob/"):
            self._blob(path.removeprefix("/blob/"), body)
        elif match := _API.fullmatch(path):
            kind = match[1].removesuffix("s")
            self._api((kind, match[2]), match[3], body)
        else:
            self._json({"error": f"no such place: {path}"}, 404)

    def _json(self, value: Any, code: int = 200, headers: dict[str, str] | None = None) -> None:
        self._send(json.dumps(value).encode(), code, {"Content-Type": "application/json", **(headers or {})})

    def _send(self, data: bytes, code: int, headers: dict[str, str]) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _missing(self, code: str) -> None:
        self._json({"error": code}, 404, {"X-Error-Code": code})

    def _whoami(self) -> None:
        if self._known():
            self._json({"type": "user", "name": "tester", "orgs": [], "auth": {"type": "access_token"}})
        else:
            self._json({"error": "Invalid credentials in Authorization header"}, 401)

    def _file(self, kind: str, repo: str, name: str) -> None:
        files = self.state.repos.get((kind, repo))
        if files is None:
            self._missing("RepoNotFound")
        elif name not in files:
            self._missing("EntryNotFound")
        else:
            etag = hashlib.sha256(files[name]).hexdigest()
            headers = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
            self._send(files[name], 200, headers)

    def _create(self, asked: dict[str, Any]) -> None:
        if not self._known():
            self._json({"error": "unauthorized"}, 401)
            return
        owner = asked.get("organization") or "tester"
        name = f"{owner}/{asked['name']}"
        key = (asked.get("type") or "model", name)
        code = 409 if key in self.state.repos else 200
        self.state.repos.setdefault(key, {})
        if asked.get("private") or asked.get("visibility") == "private":
            self.state.private.add(name)
        self._json({"url": f"{self.state.url}/{name}", "name": name}, code)

    def _batch(self, asked: dict[str, Any]) -> None:
        objects = []
        for one in asked["objects"]:
            there = one["oid"] in self.state.blobs
            upload = {"upload": {"href": f"{self.state.url}/blob/{one['oid']}", "header": {}}}
            objects.append({**one, **({} if there else {"actions": upload})})
        self._json({"transfer": "basic", "objects": objects})

    def _blob(self, oid: str, body: bytes) -> None:
        assert hashlib.sha256(body).hexdigest() == oid
        with self.state.lock:  # uploads come side by side
            stopped = self.state.stop_after is not None and len(self.state.uploads) >= self.state.stop_after
            if not stopped:
                self.state.blobs[oid] = body
                self.state.uploads.append(oid)
        self._json({"error": "the line is down"} if stopped else {}, 400 if stopped else 200)

    def _api(self, key: Key, what: str | None, body: bytes) -> None:
        files = self.state.repos.get(key)
        if files is None:
            self._missing("RepoNotFound")
        elif what == "tree":
            self._json([self._entry(name, data) for name, data in files.items()])
        elif what == "preupload":
            asked = json.loads(body)["files"]
            modes = [
                {
                    "path": one["path"],
                    "uploadMode": "lfs" if one["path"].endswith(".gguf") else "regular",
                    "shouldIgnore": False,
                    "oid": self._oid(files.get(one["path"])),
                }
                for one in asked
            ]
            self._json({"files": modes})
        elif what == "commit":
            self._commit(key[1], files, body)
        elif what == "paths-info":
            self._json([])
        else:
            siblings = [{"rfilename": name, "size": len(data)} for name, data in files.items()]
            self._json({"id": key[1], "sha": COMMIT, "siblings": siblings, "tags": [], "downloads": 0})

    @staticmethod
    def _entry(name: str, data: bytes) -> dict[str, Any]:
        return {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}

    @staticmethod
    def _oid(data: bytes | None) -> str | None:
        return None if data is None else hashlib.sha256(data).hexdigest()

    def _commit(self, repo: str, files: dict[str, bytes], body: bytes) -> None:
        for line in body.splitlines():
            one = json.loads(line)
            value = one["value"]
            if one["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif one["key"] == "lfsFile":
                files[value["path"]] = self.state.blobs[value["oid"]]
        self._json({"commitUrl": f"{self.state.url}/{repo}/commit/{COMMIT}", "commitOid": COMMIT})

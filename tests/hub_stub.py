"""The part of the Hugging Face Hub's HTTP API that `huggingface_hub` calls for model repositories, on loopback.

What is pushed is kept in memory, as commits. Text files travel inside the commit, ``*.safetensors`` and other binaries
through LFS, as the Hub does it; Xet, whose client is a binary of its own, is switched off.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

TOKEN = "hf_of_the_stub"
_LFS_SUFFIXES = (".safetensors", ".bin", ".pth")


@dataclass
class HubRepo:
    """One model repository.

    Attributes:
        commits: (40 hex digits, files by path), oldest first; ``main`` is the last.
        messages: The commits' messages.
    """

    private: bool = False
    commits: list[tuple[str, dict[str, bytes]]] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)

    @property
    def files(self) -> dict[str, bytes]:
        """Files of ``main``."""
        return self.commits[-1][1]

    @property
    def sha(self) -> str:
        """Commit of ``main``."""
        return self.commits[-1][0]

    def commit(self, files: Mapping[str, bytes], message: str = "") -> str:
        """Make ``files`` the content of ``main``; the new commit's hash."""
        digest = hashlib.sha1(repr((len(self.commits), sorted(files.items()))).encode())
        self.commits.append((digest.hexdigest(), dict(files)))
        self.messages.append(message)
        return self.sha

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """Commit and files of a branch or commit hash."""
        if revision == "main":
            return self.commits[-1]
        return next((commit for commit in self.commits if commit[0] == revision), None)


class HubStub:
    """A running stub.

    Attributes:
        url: Its endpoint.
        repos: Repositories by id.
        requests: ``METHOD path`` of every request, in order.
    """

    def __init__(self) -> None:
        self.repos: dict[str, HubRepo] = {}
        self.requests: list[str] = []
        self.lfs: dict[str, bytes] = {}
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def add(self, repo_id: str, source: Path | Mapping[str, bytes], *, private: bool = False) -> str:
        """Put a directory's files, or the given ones, into a repository; the commit's hash."""
        if isinstance(source, Path):
            source = {p.relative_to(source).as_posix(): p.read_bytes() for p in source.rglob("*") if p.is_file()}
        return self.repos.setdefault(repo_id, HubRepo(private)).commit(source)


@contextmanager
def running_hub(monkeypatch: pytest.MonkeyPatch, cache_dir: Path) -> Iterator[HubStub]:
    """Run a stub and point `huggingface_hub`, and so transformers, at it, with an empty cache and without a token."""
    import huggingface_hub
    from huggingface_hub import constants
    from transformers.utils.hub import hf_api as transformers_api

    hub = HubStub()
    thread = Thread(target=hub.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    settings = {
        "ENDPOINT": hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_DISABLE_IMPLICIT_TOKEN": True,
        "HF_HUB_CACHE": str(cache_dir),
    }
    for name, value in settings.items():
        monkeypatch.setattr(constants, name, value)
    # Both packages keep an instance that took its endpoint when it was made.
    for api in (huggingface_hub.hf_api.api, transformers_api()):
        monkeypatch.setattr(api, "endpoint", hub.url)
    try:
        yield hub
    finally:
        hub.server.shutdown()
        hub.server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubStub

    def log_message(self, *args: Any) -> None:
        """Tests read `HubStub.requests`."""

    def do_HEAD(self) -> None:
        self._read()

    def do_GET(self) -> None:
        self._read()

    def do_PUT(self) -> None:
        self.hub.requests.append(f"PUT {self.path}")
        data = self._body()
        oid = self.path.removeprefix("/lfs/")
        if hashlib.sha256(data).hexdigest() != oid:
            return self._reply(400)
        self.hub.lfs[oid] = data
        return self._reply(200)

    def do_POST(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"POST {path}")
        body = self._body()
        if path == "/api/validate-yaml":
            has_front_matter = re.match(r"---\n.*?\n---\n", json.loads(body)["content"], re.DOTALL)
            errors = [] if has_front_matter else [{"message": "no metadata"}]
            return self._reply(400 if errors else 200, {"errors": errors, "warnings": []})
        if self.headers.get("authorization") != f"Bearer {TOKEN}":
            return self._reply(401, {"error": "Invalid username or password."})
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if found := re.fullmatch(r"/(.+)\.git/info/lfs/objects/batch", path):
            return self._lfs_batch(json.loads(body))
        if found := re.fullmatch(r"/api/models/(.+)/(preupload|commit)/([^/]+)", path):
            repo = self.hub.repos.get(found[1])
            if repo is None or repo.at(found[3]) is None:
                return self._not_found("RepoNotFound")
            if found[2] == "preupload":
                return self._preupload(repo, json.loads(body))
            return self._commit(found[1], repo, [json.loads(line) for line in body.splitlines()])
        return self._reply(404)

    # --- writing --------------------------------------------------------------------------------------------------

    def _create(self, wanted: dict[str, Any]) -> None:
        repo_id = "/".join(filter(None, (wanted["organization"] or "stub-user", wanted["name"])))
        reply = {"url": f"{self.hub.url}/{repo_id}"}
        if repo_id in self.hub.repos:
            return self._reply(409, reply)
        repo = self.hub.repos[repo_id] = HubRepo(private=wanted.get("visibility") == "private")
        repo.commit({".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"}, "initial commit")
        return self._reply(200, reply)

    def _preupload(self, repo: HubRepo, wanted: dict[str, Any]) -> None:
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(_LFS_SUFFIXES) else "regular",
                "shouldIgnore": False,
                "oid": _oid(file["path"], repo.files[file["path"]]) if file["path"] in repo.files else None,
            }
            for file in wanted["files"]
        ]
        return self._reply(200, {"files": files})

    def _lfs_batch(self, wanted: dict[str, Any]) -> None:
        objects = [
            entry | ({} if entry["oid"] in self.hub.lfs else {"actions": {"upload": {"href": self._lfs_url(entry)}}})
            for entry in wanted["objects"]
        ]
        return self._reply(200, {"transfer": "basic", "objects": objects})

    def _lfs_url(self, entry: dict[str, Any]) -> str:
        return f"{self.hub.url}/lfs/{entry['oid']}"

    def _commit(self, repo_id: str, repo: HubRepo, lines: list[dict[str, Any]]) -> None:
        files, message = dict(repo.files), ""
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                message = value["summary"]
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.lfs[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
            else:
                return self._reply(400, {"error": f"unknown operation {line['key']}"})
        sha = repo.commit(files, message)
        return self._reply(200, {"commitUrl": f"{self.hub.url}/{repo_id}/commit/{sha}", "commitOid": sha})

    # --- reading --------------------------------------------------------------------------------------------------

    def _read(self) -> None:
        parts = urlsplit(self.path)
        path = unquote(parts.path)
        self.hub.requests.append(f"{self.command} {path}")
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+|[^/]+)(?:/(revision|tree)/([^/]+)(?:/(.*))?)?", path):
            repo_id, kind, revision, folder = found[1], found[2], found[3] or "main", found[4] or ""
        elif found := re.fullmatch(r"/([^/]+/[^/]+|[^/]+)/resolve/([^/]+)/(.+)", path):
            repo_id, kind, revision, folder = found[1], "resolve", found[2], found[3]
        else:
            return self._reply(404)
        repo = self.hub.repos.get(repo_id)
        if repo is None or (repo.private and self.headers.get("authorization") != f"Bearer {TOKEN}"):
            return self._not_found("RepoNotFound", status=401)
        version = repo.at(revision)
        if version is None:
            return self._not_found("RevisionNotFound")
        sha, files = version
        if kind == "resolve":
            return self._file(sha, folder, files.get(folder))
        if kind == "tree":
            recursive = parse_qs(parts.query).get("recursive", ["false"])[0].lower() == "true"
            return self._tree(sha, folder, files, recursive)
        siblings = [{"rfilename": name} for name in sorted(files)]
        info = {"_id": "0" * 24, "id": repo_id, "sha": sha, "private": repo.private, "siblings": siblings, "tags": []}
        return self._reply(200, info)

    def _file(self, sha: str, path: str, data: bytes | None) -> None:
        headers = {"X-Repo-Commit": sha}
        if data is None:
            return self._not_found("EntryNotFound", headers=headers)
        return self._reply(200, data, headers | {"ETag": f'"{_oid(path, data)}"'})

    def _tree(self, sha: str, folder: str, files: dict[str, bytes], recursive: bool) -> None:
        prefix = f"{folder.rstrip('/')}/" if folder else ""
        inside = {name: data for name, data in files.items() if name.startswith(prefix)}
        if not inside:
            return self._not_found("EntryNotFound", headers={"X-Repo-Commit": sha})
        entries: list[dict[str, Any]] = []
        for name, data in sorted(inside.items()):
            if not recursive and "/" in name.removeprefix(prefix):
                continue
            entry: dict[str, Any] = {"type": "file", "path": name, "size": len(data), "oid": _git_oid(data)}
            if name.endswith(_LFS_SUFFIXES):
                entry["lfs"] = {"oid": _oid(name, data), "size": len(data), "pointerSize": 134}
            entries.append(entry)
        return self._reply(200, entries)

    # --- HTTP -----------------------------------------------------------------------------------------------------

    def _body(self) -> bytes:
        if self.headers.get("transfer-encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("content-length", 0)))
        data = b""
        while size := int(self.rfile.readline(), 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def _not_found(self, code: str, *, status: int = 404, headers: Mapping[str, str] | None = None) -> None:
        self._reply(status, {"error": code}, {"X-Error-Code": code, **(headers or {})})

    def _reply(self, status: int, body: Any = b"", headers: Mapping[str, str] | None = None) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        kind = "application/octet-stream" if isinstance(body, bytes) else "application/json"
        for name, value in {"Content-Type": kind, "Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _oid(path: str, data: bytes) -> str:
    return hashlib.sha256(data).hexdigest() if path.endswith(_LFS_SUFFIXES) else _git_oid(data)

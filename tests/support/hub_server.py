"""A small Hub on loopback: what huggingface_hub asks for when it pulls and pushes, over real HTTP, with real faults.

Answers follow the real Hub: LFS files redirect to another origin (the CDN) that must never see a token, everything else
is served in place; errors carry X-Error-Code. ``faults`` makes chosen requests fail.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
import yaml
from huggingface_hub import constants, file_download
from huggingface_hub.utils import _http

TOKEN = "hf_loopbackOwnerToken"  # of the user "me"
STRANGER = "hf_loopbackStrangerToken"  # of a user without rights here
_LFS = re.compile(r".*\.(safetensors|bin|png)")


@dataclass
class Repo:
    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)  # sha -> path -> content
    refs: dict[str, str] = field(default_factory=dict)  # branch -> sha
    messages: list[str] = field(default_factory=list)

    def commit(self, ref: str, files: Mapping[str, bytes], message: str = "commit") -> str:
        whole = {**self.commits.get(self.refs.get(ref, ""), {}), **files}
        self.messages.append(message)
        sha = hashlib.sha1(
            repr((sorted(whole.items()), ref, len(self.messages))).encode()
        ).hexdigest()
        self.commits[sha], self.refs[ref] = whole, sha
        return sha

    def resolve(self, revision: str) -> str | None:
        return self.refs.get(revision) or (revision if revision in self.commits else None)


@dataclass
class Fault:
    """Makes the next ``times`` requests that match ``method path`` fail."""

    pattern: str
    status: int = 0  # 0: the connection drops without an answer
    headers: Mapping[str, str] = field(default_factory=dict)
    keep: int | None = None  # answer, but drop the connection after so many bytes of the body
    times: int = 10**6


class Hub:
    """The server. As a context: listening on two ports, the Hub and the CDN."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.lfs: dict[str, bytes] = {}  # sha256 -> content
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str | None]] = []  # "METHOD path", Authorization
        self.leaks: list[str] = []  # requests that took a token away from the Hub
        self.chunk_size: int | None = None  # set: LFS uploads go in parts of that size
        self._parts: dict[str, dict[int, bytes]] = {}
        handler = type("Handler", (_Handler,), {"hub": self})
        self._servers = [ThreadingHTTPServer(("127.0.0.1", 0), handler) for _ in range(2)]
        self.url, self.cdn = (f"http://127.0.0.1:{server.server_port}" for server in self._servers)

    def __enter__(self) -> "Hub":
        for server in self._servers:
            server.daemon_threads = True
            threading.Thread(
                target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
            ).start()
        return self

    def __exit__(self, *error: object) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def add(self, name: str, files: Mapping[str, bytes], **kind: Any) -> str:
        """A repository with one commit; the sha of that."""
        repo = self.repos[name] = Repo(**kind)
        self.lfs |= {
            hashlib.sha256(c).hexdigest(): c for path, c in files.items() if _LFS.fullmatch(path)
        }
        return repo.commit("main", files)

    def files(self, name: str, revision: str = "main") -> dict[str, bytes]:
        repo = self.repos[name]
        return repo.commits[repo.refs[revision]]

    def asked(self, pattern: str) -> int:
        """How many requests matched."""
        return sum(bool(re.match(pattern, line)) for line, _ in self.requests)


@contextmanager
def connected(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub with an empty cache in the folder, which huggingface_hub of this process talks to without a token.

    huggingface_hub reads its environment once, when it is imported, hence the patched constants. Its waits between
    retries are left out.
    """
    with Hub() as server:
        for name, value in {
            "ENDPOINT": server.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(folder / "cache"),
            "HF_TOKEN_PATH": str(folder / "no-token"),
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,  # Xet goes to servers of its own: not measured
        }.items():
            for module in (constants, file_download):  # before 1.0 this one has copies of its own
                if hasattr(module, name):
                    monkeypatch.setattr(module, name, value)
        if forget := getattr(
            _http, "reset_sessions", None
        ):  # before 1.0 what was once offline stays so
            forget()
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
        yield server


PUSH_STEPS = {  # what huggingface_hub asks for to push to me/merged, in that order
    "create": "POST /api/repos/create",
    "validate": "POST /api/validate-yaml",
    "preupload": "POST /api/models/me/merged/preupload/",
    "batch": "POST /me/merged.git/info/lfs/objects/batch",
    "put": "PUT /lfs/",
    "verify": "POST /lfs-verify",
    "commit": "POST /api/models/me/merged/commit/",
}


class _Refused(Exception):
    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        self.status = status
        self.headers = {"X-Error-Code": code, "X-Error-Message": message}


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None: ...

    def _serve(self) -> None:
        split = urlsplit(self.path)
        self.route, self.query = unquote(split.path), parse_qs(split.query)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        line = f"{self.command} {self.route}"
        authorization = self.headers.get("Authorization")
        self.hub.requests.append((line, authorization))
        if authorization and self.server.server_address[1] != urlsplit(self.hub.url).port:
            self.hub.leaks.append(line)
        self.cut: int | None = None
        for fault in self.hub.faults:
            if fault.times and re.match(fault.pattern, line):
                fault.times -= 1
                if fault.keep is None:
                    return (
                        self._drop()
                        if not fault.status
                        else self._answer(fault.status, b"{}", fault.headers)
                    )
                self.cut = fault.keep
        try:
            for pattern, act in _ROUTES:
                if match := re.fullmatch(pattern, line):
                    return act(self, *match.groups())
            raise _Refused(404, "", f"no route {line}")
        except _Refused as refused:
            self._answer(refused.status, b'{"error": "refused"}', refused.headers)

    do_GET = do_HEAD = do_POST = do_PUT = _serve

    def _drop(self) -> None:
        self.close_connection = True
        self.connection.close()

    def _answer(self, status: int, body: bytes, headers: Mapping[str, str] = {}) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: self.cut])
        if self.cut is not None:
            self._drop()

    def _json(self, data: Any) -> None:
        self._answer(200, json.dumps(data).encode(), {"Content-Type": "application/json"})

    def _user(self) -> str | None:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token and token not in (TOKEN, STRANGER):
            raise _Refused(401, "", "Invalid credentials in Authorization header")
        return {TOKEN: "me", STRANGER: "stranger"}.get(token)

    def _repo(self, name: str, *, write: bool = False) -> Repo:
        repo, user = self.hub.repos.get(name), self._user()
        if repo is None or (repo.private and user != "me"):
            # the real Hub leaves the code out of the 401, but there the client tells by the https URL
            raise _Refused(404 if user else 401, "RepoNotFound", "Repository not found")
        if repo.gated and user != "me" and "/resolve/" in self.route:
            raise _Refused(403 if user else 401, "GatedRepo", "Access is restricted")
        if write and user != "me":
            raise _Refused(403 if user else 401, "", "You don't have the rights to write here")
        return repo

    def _commit_of(self, repo: Repo, revision: str) -> str:
        sha = repo.resolve(revision)
        if sha is None:
            raise _Refused(404, "RevisionNotFound", "no such revision")
        return sha

    def resolve(self, name: str, revision: str, path: str) -> None:
        repo = self._repo(name)
        sha = self._commit_of(repo, revision)
        if path not in repo.commits[sha]:
            return self._answer(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": sha})
        content, headers = repo.commits[sha][path], {"X-Repo-Commit": sha}
        if not _LFS.fullmatch(path):
            return self._answer(
                200, content, {**headers, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'}
            )
        oid = hashlib.sha256(content).hexdigest()
        linked = {
            "X-Linked-Etag": f'"{oid}"',
            "X-Linked-Size": str(len(content)),
            "ETag": '"pointer"',
        }
        self._answer(
            302,
            b"",
            {
                **headers,
                **linked,
                "Location": f"{self.hub.cdn}/cdn/{oid}?Signature=secretSignature",
            },
        )

    def cdn(self, oid: str) -> None:
        content, start = self.hub.lfs[oid], 0
        if match := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or ""):
            start = int(match[1])
        part = (
            {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if start else {}
        )
        self._answer(206 if start else 200, content[start:], {"ETag": f'"{oid}"', **part})

    def info(self, name: str, revision: str = "main") -> None:
        repo = self._repo(name)
        sha = self._commit_of(repo, revision)
        siblings = [{"rfilename": path} for path in repo.commits[sha]]
        self._json(
            {"id": name, "sha": sha, "private": repo.private, "tags": [], "siblings": siblings}
        )

    def create(self) -> None:
        wanted, user = json.loads(self.body), self._user()
        if user is None:
            raise _Refused(401, "", "Invalid username or password.")
        owner = wanted["organization"] or user
        name = f"{owner}/{wanted['name']}"
        if owner != user:
            raise _Refused(403, "", f"You don't have the rights to create a model under {owner}")
        if name in self.hub.repos:
            return self._answer(
                409, json.dumps({"error": "it is there", "url": f"{self.hub.url}/{name}"}).encode()
            )
        private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
        self.hub.add(name, {".gitattributes": b"*.safetensors filter=lfs\n"}, private=private)
        self._json({"url": f"{self.hub.url}/{name}"})

    def branch(self, name: str, branch: str) -> None:
        repo = self._repo(name, write=True)
        if branch in repo.refs:
            raise _Refused(409, "", "Reference already exists")
        repo.refs[branch] = repo.refs["main"]
        self._json({})

    def validate(self) -> None:
        match = re.match(r"---\n(.*?)\n---\n", json.loads(self.body)["content"], re.DOTALL)
        data = yaml.safe_load(match[1]) if match else {}
        bases = data.get("base_model") or []
        wrong = [
            base
            for base in ([bases] if isinstance(bases, str) else bases)
            if not re.fullmatch(r"[\w.-]+/[\w.-]+", base)
        ]
        errors = [{"message": f'"base_model" {base} must be a repository id'} for base in wrong]
        body = json.dumps({"errors": errors, "warnings": []}).encode()
        self._answer(400 if errors else 200, body)

    def preupload(self, name: str, revision: str) -> None:
        repo = self._repo(name, write="create_pr" not in self.query)
        self._commit_of(repo, revision)
        files = json.loads(self.body)["files"]
        mode = {
            file["path"]: "lfs" if _LFS.fullmatch(file["path"]) else "regular" for file in files
        }
        self._json(
            {
                "files": [
                    {"path": p, "uploadMode": m, "shouldIgnore": False, "oid": None}
                    for p, m in mode.items()
                ]
            }
        )

    def lfs_batch(self, name: str) -> None:
        self._repo(name)
        self._json(
            {
                "transfer": "basic",
                "objects": [self._lfs_object(o) for o in json.loads(self.body)["objects"]],
            }
        )

    def _lfs_object(self, wanted: Mapping[str, Any]) -> dict[str, Any]:
        oid, size = wanted["oid"], wanted["size"]
        if oid in self.hub.lfs:
            return {"oid": oid, "size": size}
        verify = {"href": f"{self.hub.url}/lfs-verify", "header": {}}
        upload: dict[str, Any] = {
            "href": f"{self.hub.cdn}/lfs/{oid}?Signature=secretSignature",
            "header": {},
        }
        if step := self.hub.chunk_size:
            parts = {
                str(i + 1): f"{self.hub.cdn}/lfs-part/{oid}/{i + 1}"
                for i in range(-(-size // step))
            }
            upload = {
                "href": f"{self.hub.url}/lfs-done/{oid}",
                "header": {"chunk_size": str(step), **parts},
            }
        return {"oid": oid, "size": size, "actions": {"upload": upload, "verify": verify}}

    def lfs_put(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise _Refused(400, "", "wrong content")
        self.hub.lfs[oid] = self.body
        self._answer(200, b"", {"ETag": oid})

    def lfs_part(self, oid: str, part: str) -> None:
        self.hub._parts.setdefault(oid, {})[int(part)] = self.body
        self._answer(200, b"", {"ETag": f'"part-{part}"'})

    def lfs_done(self, oid: str) -> None:
        parts = self.hub._parts.pop(oid)
        self.body = b"".join(parts[i] for i in sorted(parts))
        self.lfs_put(oid)

    def lfs_verify(self) -> None:
        if json.loads(self.body)["oid"] not in self.hub.lfs:
            raise _Refused(404, "", "not uploaded")
        self._json({})

    def commit(self, name: str, revision: str) -> None:
        as_pr = "create_pr" in self.query
        repo = self._repo(name, write=not as_pr)
        self._commit_of(repo, revision)
        lines = [json.loads(line) for line in self.body.splitlines()]
        files = {}
        for entry in lines[1:]:
            value = entry["value"]
            lfs = entry["key"] == "lfsFile"
            files[value["path"]] = (
                self.hub.lfs[value["oid"]] if lfs else base64.b64decode(value["content"])
            )
        ref = (
            f"refs/pr/{1 + sum(r.startswith('refs/pr/') for r in repo.refs)}" if as_pr else revision
        )
        if as_pr:
            repo.refs[ref] = repo.refs[revision]
        sha = repo.commit(ref, files, lines[0]["value"]["summary"])
        pull = f"{self.hub.url}/{name}/discussions/{ref.rpartition('/')[2]}" if as_pr else ""
        self._json(
            {
                "commitUrl": f"{self.hub.url}/{name}/commit/{sha}",
                "commitOid": sha,
                "pullRequestUrl": pull,
            }
        )


_NAME = r"([^/]+/[^/]+)"
_ROUTES: tuple[tuple[str, Callable[..., None]], ...] = (
    (rf"(?:GET|HEAD) /{_NAME}/resolve/(refs/pr/\d+|[^/]+)/(.+)", _Handler.resolve),
    (r"GET /cdn/(\w+)", _Handler.cdn),
    (r"POST /api/repos/create", _Handler.create),
    (r"POST /api/validate-yaml", _Handler.validate),
    (rf"GET /api/models/{_NAME}", _Handler.info),
    (rf"GET /api/models/{_NAME}/revision/(.+)", _Handler.info),
    (rf"POST /api/models/{_NAME}/branch/(.+)", _Handler.branch),
    (rf"POST /api/models/{_NAME}/preupload/(.+)", _Handler.preupload),
    (rf"POST /api/models/{_NAME}/commit/(.+)", _Handler.commit),
    (rf"POST /{_NAME}\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    (r"PUT /lfs/(\w+)", _Handler.lfs_put),
    (r"PUT /lfs-part/(\w+)/(\d+)", _Handler.lfs_part),
    (r"POST /lfs-done/(\w+)", _Handler.lfs_done),
    (r"POST /lfs-verify", _Handler.lfs_verify),
)

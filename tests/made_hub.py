"""A Hugging Face Hub of a few routes, in memory: what huggingface_hub asks when it pushes and when it fetches."""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlparse

TOKEN = "hf_made"  # the one that may read and write everything


@dataclass
class Repo:
    """A repository: commits with their files, and the names that lead to them."""

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    refs: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, bytes], message: str) -> str:
        """Add a commit to a branch."""
        self.messages.append(message)
        digest = hashlib.sha1("\n".join(self.messages).encode())
        for name in sorted(files):
            digest.update(name.encode() + files[name])
        self.refs[branch] = digest.hexdigest()
        self.commits[digest.hexdigest()] = dict(files)
        return digest.hexdigest()

    def change(self, name: str, content: bytes | None, branch: str = "main") -> None:
        """Replace a file behind everybody's back, or take it away."""
        files = {**self.commits[self.refs[branch]]}
        files.pop(name, None)
        self.commit(branch, files | ({} if content is None else {name: content}), f"change {name}")


class Hub:
    """The server; `with Hub() as hub` runs it."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}  # of LFS, by sha256
        self.asked: list[str] = []
        self.refuses_objects = False
        hub = self

        class Handler(_Handler):
            made = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "Hub":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop; from then on nothing answers at `url`."""
        self._server.shutdown()
        self._server.server_close()

    def files(self, repo: str, revision: str = "main") -> dict[str, bytes]:
        """Return what a repository holds."""
        held = self.repos[repo]
        return held.commits[held.refs.get(revision, revision)]


class _RefusalError(Exception):
    def __init__(self, status: int, code: str | None = None, message: str = "") -> None:
        self.status, self.code, self.message = status, code, message


def _git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _is_large(name: str) -> bool:
    return name.endswith((".safetensors", ".bin"))


class _Handler(BaseHTTPRequestHandler):
    made: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    do_GET = do_POST = do_PUT = do_HEAD  # noqa: N815

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        address = urlparse(self.path)
        path = address.path
        self.made.asked.append(f"{self.command} {path}")
        try:
            status, headers, content = self._route(path, parse_qs(address.query), body)
        except _RefusalError as refusal:
            status, headers, content = refusal.status, {}, json.dumps({"error": refusal.message}).encode()
            headers |= {"X-Error-Code": refusal.code} if refusal.code else {}
            headers |= {"X-Error-Message": refusal.message} if refusal.message else {}
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _route(self, path: str, query: dict[str, list[str]], body: bytes) -> tuple[int, dict[str, str], bytes]:
        if match := re.fullmatch(r"/lfs/([0-9a-f]{64})", path):
            if self.made.refuses_objects:
                raise _RefusalError(403, None, "storage is full")
            assert hashlib.sha256(body).hexdigest() == match[1]
            self.made.objects[match[1]] = body
            return 200, {}, b""
        if path == "/api/validate-yaml":
            text = json.loads(body)["content"]
            if "license: nonsense" in text:
                return 400, {}, json.dumps({"errors": [{"message": '"license" must be one of a list'}]}).encode()
            return _json({"errors": [], "warnings": []})
        if path == "/api/repos/create":
            self._must_write()
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            if name in self.made.repos:
                return (
                    409,
                    {},
                    json.dumps({"error": "You already created it", "url": f"{self.made.url}/{name}"}).encode(),
                )
            repo = self.made.repos[name] = Repo(private=asked.get("visibility") == "private")
            repo.commit("main", {".gitattributes": b"*.safetensors filter=lfs\n"}, "initial commit")
            return _json({"url": f"{self.made.url}/{name}"})
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(\w+)/(.+))?", path):
            return self._model(match[1], match[2], unquote(match[3] or "main"), body)
        if match := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            self._must_write()
            objects = [
                {**one, "actions": {"upload": {"href": f"{self.made.url}/lfs/{one['oid']}"}}}
                for one in json.loads(body)["objects"]
            ]
            return _json({"transfer": "basic", "objects": objects})
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self._file(match[1], unquote(match[2]), unquote(match[3]))
        raise _RefusalError(404, None, f"the made hub knows no {self.command} {path}")

    def _has_token(self) -> bool:
        given = self.headers.get("Authorization")
        if given not in (None, f"Bearer {TOKEN}"):
            raise _RefusalError(401, None, "Invalid credentials in Authorization header")
        return given is not None

    def _must_write(self) -> None:
        if not self._has_token():
            raise _RefusalError(401, None, "Invalid username or password.")

    def _repo(self, name: str) -> Repo:
        known, repo = self._has_token(), self.made.repos.get(name)
        if repo is None or (repo.private and not known):
            raise _RefusalError(404 if known else 401, "RepoNotFound", "Repository not found")
        return repo

    def _commit_of(self, repo: Repo, revision: str) -> str:
        found = repo.refs.get(revision, revision)
        if found not in repo.commits:
            raise _RefusalError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return found

    def _model(self, name: str, what: str | None, rest: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        repo = self._repo(name)
        if what in (None, "revision"):
            return _json({"id": name, "sha": self._commit_of(repo, rest), "private": repo.private, "siblings": []})
        if what == "tree":
            files = repo.commits[self._commit_of(repo, rest)]
            return _json([self._entry(path, content) for path, content in files.items()])
        self._must_write()
        asked = [json.loads(line) for line in body.splitlines()] if what == "commit" else json.loads(body or b"{}")
        if what == "preupload":
            held = repo.commits[self._commit_of(repo, rest)]
            return _json({"files": [self._mode(file["path"], held) for file in asked["files"]]})
        if what == "branch":
            if rest in repo.refs:
                raise _RefusalError(409, None, "Reference already exists")
            repo.refs[rest] = repo.refs["main"]
            return _json({})
        if what == "tag":
            repo.refs[asked["tag"]] = self._commit_of(repo, rest)
            return _json({})
        assert what == "commit"
        files = dict(repo.commits[self._commit_of(repo, rest)])
        for entry in asked[1:]:
            value = entry["value"]
            if entry["key"] == "deletedFile":
                del files[value["path"]]
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.made.objects[value["oid"]]
            else:
                files[value["path"]] = base64.b64decode(value["content"])
        oid = repo.commit(rest, files, asked[0]["value"]["summary"])
        return _json({"commitUrl": f"{self.made.url}/{name}/commit/{oid}", "commitOid": oid})

    def _mode(self, path: str, held: dict[str, bytes]) -> dict[str, Any]:
        large, content = _is_large(path), held.get(path)
        oid = None if content is None else hashlib.sha256(content).hexdigest() if large else _git_sha1(content)
        return {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": oid}

    def _entry(self, path: str, content: bytes) -> dict[str, Any]:
        entry = {"type": "file", "path": path, "size": len(content), "oid": _git_sha1(content)}
        if _is_large(path):
            oid = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"oid": oid, "size": len(content), "pointerSize": 134}
        return entry

    def _file(self, name: str, revision: str, path: str) -> tuple[int, dict[str, str], bytes]:
        repo = self._repo(name)
        if repo.gated and not self._has_token():
            raise _RefusalError(401, "GatedRepo", "Access to model is restricted")
        commit = self._commit_of(repo, revision)
        headers = {"X-Repo-Commit": commit}
        content = repo.commits[commit].get(path)
        if content is None:
            raise _RefusalError(404, "EntryNotFound", "Entry not found")
        if _is_large(path):
            oid = hashlib.sha256(content).hexdigest()
            headers |= {"X-Linked-Etag": f'"{oid}"', "X-Linked-Size": str(len(content))}
        return 200, headers | {"ETag": f'"{_git_sha1(content)}"'}, content


def _json(value: Any) -> tuple[int, dict[str, str], bytes]:
    return 200, {"Content-Type": "application/json"}, json.dumps(value).encode()

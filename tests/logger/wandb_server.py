"""A stand-in W&B server on loopback: what a run needs of one, and how one can fail.

`with WandbServer() as server:`, then point wandb at it with `server.environment()`. What came is in
`server.runs` (by run id) and, as raw bytes, in `server.received`. `server.fault` makes it ill: an
HTTP status, bytes (the answer to every request), or "silence" (it never answers).
"""

import gzip
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

Json = dict[str, Any]


@dataclass
class Run:
    """One run as the server sees it; `lines` holds the rows of the history by their offset."""

    project: str
    id: str
    config: Json = field(default_factory=dict)
    summary: Json = field(default_factory=dict)
    lines: dict[int, Json] = field(default_factory=dict)
    about: Json = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    exit_code: int | None = None

    @property
    def history(self) -> list[Json]:
        """The rows in the order of their offsets."""
        return [self.lines[offset] for offset in sorted(self.lines)]

    def column(self, name: str) -> list[Any]:
        """The values of one metric over the rows that have it."""
        return [row[name] for row in self.history if name in row]


@dataclass
class Artifact:
    """One artifact as the server sees it."""

    about: Json
    files: dict[str, bytes] = field(default_factory=dict)
    is_committed: bool = False


class WandbServer:
    """The server, on a thread of this process."""

    def __init__(self) -> None:
        self.runs: dict[str, Run] = {}
        self.artifacts: dict[str, Artifact] = {}
        self.received: list[bytes] = []
        self.unknown: list[str] = []
        self.fault: int | bytes | str | None = None
        self.healthy = threading.Event()
        self.lock = threading.Lock()
        self._http = _Http(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"

    def __enter__(self) -> "WandbServer":
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Refuse connections from now on."""
        self.healthy.set()
        self._http.shutdown()
        self._http.server_close()

    def environment(self) -> dict[str, str]:
        """The variables that make wandb talk to this server."""
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": "k" * 40, "no_proxy": "*"}

    def graphql(self, request: Json) -> Json:
        """Answer one GraphQL request."""
        named = re.search(r"(?:query|mutation)\s+(\w+)", request.get("query", ""))
        operation = request.get("operationName") or (named[1] if named else "")
        answer = _ANSWERS.get(operation)
        if answer is None:
            self.unknown.append(operation)
            return {}
        return answer(self, request.get("variables") or {})

    def stream(self, run: Run, body: Json) -> None:
        """Take one batch of history rows, summary and exit code."""
        for name, part in (body.get("files") or {}).items():
            if name == "wandb-history.jsonl":
                for i, line in enumerate(part["content"]):
                    run.lines[part["offset"] + i] = json.loads(line)
            elif name == "wandb-summary.json":
                run.summary = json.loads(part["content"][-1])
        if body.get("complete"):
            run.exit_code = body.get("exitcode")


class _Http(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of clients that leave: wandb-core cuts its connections when it ends."""


def _viewer(server: WandbServer, variables: Json) -> Json:
    return {
        "viewer": {
            "id": "u",
            "entity": "local",
            "username": "local",
            "flags": "{}",
            "teams": {"edges": []},
        }
    }


def _project(run: Run) -> Json:
    return {"id": "p", "name": run.project, "entity": {"id": "e", "name": "local"}}


def _upsert(server: WandbServer, variables: Json) -> Json:
    project = variables.get("project") or "uncategorized"
    is_new = variables["name"] not in server.runs
    is_opened = variables.get("host") is not None  # later requests bring a new config only
    if is_new or (is_opened and not variables.get("id")):
        # who opens a run without knowing its id does not resume it: W&B replaces what is there
        server.runs[variables["name"]] = Run(project, variables["name"])
    run = server.runs[variables["name"]]
    for name in ("groupName", "displayName", "jobType", "tags", "commit", "program", "repo"):
        if variables.get(name) is not None:
            run.about[name] = variables[name]
    if variables.get("config"):
        run.config = json.loads(variables["config"])
    bucket = {
        "id": f"id-{run.id}",
        "name": run.id,
        "displayName": run.about.get("displayName", run.id),
        "config": json.dumps(run.config),
        "sweepName": None,
        "project": _project(run),
        "historyLineCount": len(run.lines),
    }
    return {"upsertBucket": {"bucket": bucket, "inserted": is_new}}


def _resume(server: WandbServer, variables: Json) -> Json:
    run = server.runs.get(variables["name"])
    if run is None:
        return {"model": {"id": "p", "name": variables.get("project"), "bucket": None}}
    bucket = {
        "id": f"id-{run.id}",
        "name": run.id,
        "displayName": run.about.get("displayName", ""),
        "summaryMetrics": json.dumps(run.summary),
        "logLineCount": 0,
        "historyLineCount": len(run.lines),
        "eventsLineCount": 0,
        "historyTail": json.dumps([json.dumps(row) for row in run.history[-1:]]),
        "eventsTail": "[]",
        "config": json.dumps(run.config),
        "tags": run.about.get("tags", []),
        "wandbConfig": json.dumps({"t": 1}),
    }
    return {"model": {**_project(run), "bucket": bucket}}


def _create_files(server: WandbServer, variables: Json) -> Json:
    files = [
        {"name": name, "uploadUrl": f"{server.url}/storage/{variables['run']}/{name}"}
        for name in variables["files"]
    ]
    return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}


def _create_artifact(server: WandbServer, variables: Json) -> Json:
    id = f"artifact-{len(server.artifacts)}"
    server.artifacts[id] = Artifact(variables["input"])
    about = {"id": id, "state": "PENDING", "artifactSequence": {"latestArtifact": None}}
    return {"createArtifact": {"artifact": about}}


def _create_manifest(server: WandbServer, variables: Json) -> Json:
    url = f"{server.url}/storage/{variables['artifactID']}/{variables['name']}"
    file = {"id": "f", "uploadUrl": url, "uploadHeaders": []}
    return {"createArtifactManifest": {"artifactManifest": {"id": "m", "file": file}}}


def _create_artifact_files(server: WandbServer, variables: Json) -> Json:
    nodes = [
        {
            "storagePath": f"p/{file['name']}",
            "uploadUrl": f"{server.url}/storage/{file['artifactID']}/{file['name']}",
            "uploadHeaders": [],
            "uploadMultipartUrls": None,
            "artifact": {"id": file["artifactID"]},
        }
        for file in variables["input"]["artifactFiles"]
    ]
    return {"createArtifactFiles": {"files": {"edges": [{"node": node} for node in nodes]}}}


def _commit_artifact(server: WandbServer, variables: Json) -> Json:
    server.artifacts[variables["artifactID"]].is_committed = True
    return {"commitArtifact": {"artifact": {"id": variables["artifactID"], "digest": "d"}}}


_ANSWERS: dict[str, Callable[[WandbServer, Json], Json]] = {
    "Viewer": _viewer,
    "UpsertBucket": _upsert,
    "RunResumeStatus": _resume,
    "CreateRunFiles": _create_files,
    "ArtifactType": lambda server, variables: {"project": {"artifact": None}},
    "CreateArtifact": _create_artifact,
    "CreateArtifactManifest": _create_manifest,
    "CreateArtifactFiles": _create_artifact_files,
    "CommitArtifact": _commit_artifact,
    "ServerFeaturesQuery": lambda server, variables: {"serverInfo": {"features": []}},
    "RunStoppedStatus": lambda server, variables: {"project": {"run": {"stopped": False}}},
    "OrganizationCoreWeaveOrganizationID": lambda server, variables: {
        "entity": {"organization": {"coreWeaveOrganizationId": None}}
    },
}


def _handler(server: WandbServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_POST(self) -> None:
            body = self._body()
            if self._is_ill():
                return
            answer: Json = {}
            stream = re.fullmatch(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", self.path)
            with server.lock:
                if self.path == "/graphql":
                    answer = {"data": server.graphql(json.loads(body))}
                elif stream and stream[1] in server.runs:
                    server.stream(server.runs[stream[1]], json.loads(body))
                elif not self.path.startswith("/sdk/otel/"):
                    server.unknown.append(self.path)
            self._answer(200, json.dumps(answer).encode())

        def do_PUT(self) -> None:
            body = self._body()
            if self._is_ill():
                return
            _, _, run, name = self.path.split("/", 3)
            owner = server.runs[run] if run in server.runs else server.artifacts[run]
            owner.files[name] = body
            self._answer(200, b"{}")

        def do_GET(self) -> None:
            if not self._is_ill():
                self._answer(404, b"{}")

        def _is_ill(self) -> bool:
            if server.fault == "silence":
                server.healthy.wait(60)
            elif isinstance(server.fault, int):
                self._answer(server.fault, b'{"error": "injected"}')
            elif isinstance(server.fault, bytes):
                self._answer(200, server.fault)
            return server.fault is not None

        def _body(self) -> bytes:
            body = b""
            if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
                while size := int(self.rfile.readline().split(b";")[0], 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            else:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            server.received.append(body)
            return body

        def _answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return Handler

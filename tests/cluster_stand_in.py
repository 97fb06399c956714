"""A stand-in for a cluster: an HTTP server on 127.0.0.1 that answers as Kubernetes and Kubeflow Pipelines do."""

import base64
import gzip
import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


class StandIn(ThreadingHTTPServer):
    """Answers as Kubernetes and Kubeflow Pipelines do, what a test lets it."""

    daemon_threads = True

    def __init__(self) -> None:
        self.runs: list[Any] = []
        """The runs, or what each question after the run gets, one after the other: the run, or a status."""
        self.pods: list[dict[str, Any]] = []
        self.training: list[dict[str, Any]] = []
        self.nodes_of_cluster: list[dict[str, Any]] = []
        self.quotas: list[dict[str, Any]] = []
        self.refusal = ""
        """Why no pod is let in, in the words of the API."""
        self.events: list[dict[str, Any]] = []
        self.nodes: dict[str, str] = {}
        self.compressed = False
        """Whether the nodes of a workflow are compressed, as Argo does where there are many."""
        self.logs: dict[str, list[str]] = {}
        self.kept: dict[str, list[str]] = {}
        self.forbidden = False
        self.claim = ""
        """The phase of every claim; empty: there is none."""
        self.calls: list[str] = []
        super().__init__(("127.0.0.1", 0), _Answers)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Answers(BaseHTTPRequestHandler):
    server: StandIn

    def do_GET(self) -> None:
        url = urlsplit(unquote(self.path))
        self.server.calls.append(f"GET {url.path}")
        # Through kubeconfig, Kubeflow Pipelines is reached by the API server's proxy.
        path = re.sub(r"^/api/v1/namespaces/kubeflow/services/ml-pipeline:http/proxy", "", url.path)
        answer = self.answer(path, parse_qs(url.query))
        status = 200
        if isinstance(answer, int):
            status, answer = answer, {"message": "pods is forbidden: User jo cannot list resource pods"}
        body = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        self.server.calls.append(f"POST {urlsplit(self.path).path}")
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(403 if self.server.refusal else 201)
        self.end_headers()
        self.wfile.write(json.dumps({"message": self.server.refusal}).encode())

    def answer(self, path: str, query: dict[str, list[str]]) -> Any:
        server = self.server
        if path in ("", "/"):
            return "<html>the page of Kubeflow Pipelines</html>"
        if path.endswith("/healthz"):
            return {"multi_user": False}
        if path == "/apis/v2beta1/runs":
            return {"runs": server.runs}
        if re.fullmatch(r"/apis/v2beta1/runs/[^/]+", path):
            return server.runs.pop(0) if len(server.runs) > 1 else server.runs[0]
        if found := re.search(r"/runs/[^/]+/nodes/([^/]+)/log$", path):
            return "\n".join(server.kept.get(found[1], [])) or 404
        if server.forbidden:
            return 403
        if path.endswith("/workflows"):
            nodes = {str(i): {"name": name, "message": text} for i, (name, text) in enumerate(server.nodes.items())}
            packed = base64.b64encode(gzip.compress(json.dumps(nodes).encode())).decode()
            return {"items": [{"status": {"compressedNodes": packed} if server.compressed else {"nodes": nodes}}]}
        if path == "/api/v1/nodes":
            return {"items": server.nodes_of_cluster}
        if path == "/api/v1/pods":
            return {"items": server.pods + server.training}
        if "/persistentvolumeclaims/" in path:
            return {"status": {"phase": server.claim}} if server.claim else 404
        if path.endswith("/resourcequotas"):
            return {"items": server.quotas}
        if path.endswith("/events"):
            return {"items": server.events}
        if path.endswith("/pods"):
            return {"items": server.pods if "pipeline/runid" in query["labelSelector"][0] else server.training}
        if found := re.search(r"/pods/([^/]+)/log$", path):
            lines = server.logs.get(found[1])
            stamped = [
                line if re.match(r"\d{4}-\d\d-\d\dT", line) else f"2026-11-25T19:38:23.{i:09}Z {line}"
                for i, line in enumerate(lines or [])
            ]
            return 404 if lines is None else "\n".join(stamped)
        return 404

    def log_message(self, *_: object) -> None:
        pass

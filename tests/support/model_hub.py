"""A hub of models on this machine."""

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

from tests.download.wheels import CONTENT
from tests.support.http_server import QuietHandler, serving


class FakeHub(QuietHandler):
    """As much of the Hugging Face hub as a download needs: org/one, org/many, the gated org/gated, and org/broken."""

    commit = "0123456789012345678901234567890123456789"
    repositories: ClassVar[dict[str, dict[str, bytes]]] = {
        "org/one": {"one.gguf": CONTENT, "tokenizer.model": b"pieces", "huge.safetensors": b"never wanted"},
        "org/many": {"m-Q4_0.gguf": b"q4", "m-Q8_0.gguf": b"q8"},
        "org/folder": {"config.json": b"{}", "model.safetensors": b"weights", "tokenizer.json": b"{}", "x.bin": b"no"},
        "org/split": {"m-00001-of-00002.gguf": b"one", "m-00002-of-00002.gguf": b"two", "other.gguf": b"no"},
        "org/gated": {"g.gguf": b"secret"},
    }
    served: list[str]

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self.served.append(self.path)
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        api = re.match(r"/api/models/(\w+/\w+)(/tree)?", self.path)
        file = re.match(r"/(\w+/\w+)/resolve/\w+/([^?]+)", self.path)
        headers = {"X-Repo-Commit": self.commit}
        status, body = 404, b"{}"
        if api is not None and api[1] == "org/broken":
            status = 503
        elif api is not None and api[1] in self.repositories:
            files = self.repositories[api[1]]
            tree = [{"type": "file", "path": name, "size": len(files[name]), "oid": name} for name in files]
            about = {"id": api[1], "sha": self.commit, "siblings": [{"rfilename": name} for name in files]}
            status, body = 200, json.dumps(tree if api[2] else about).encode()
        elif api is not None:
            headers["X-Error-Code"] = "RepoNotFound"
        elif file is not None and file[1] == "org/gated":
            status, headers["X-Error-Code"] = 403, "GatedRepo"
        elif file is not None:
            status, body = 200, self.repositories[file[1]][file[2]]
            headers["ETag"] = f'"{hashlib.sha1(body).hexdigest()}"'
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body)


@contextmanager
def running_hub() -> Iterator[tuple[str, list[str]]]:
    served: list[str] = []
    with serving(type("Hub", (FakeHub,), {"served": served})) as endpoint:
        yield endpoint, served

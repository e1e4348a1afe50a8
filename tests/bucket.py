"""A bucket of Google Cloud Storage on this machine: as much of its JSON interface as our libraries use, in memory.

gcsfs (by way of etils), google-cloud-storage (tensorboardX, Orbax) and TensorStore (Orbax) all find it by the variables
of `served`. It checks the conditions on generations that TensorStore's commits rest on, and has no limits on rates.
"""

import contextlib
import email
import itertools
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

NAME = "made-up"
COPY = rf"(?P<how>move|rewrite)To(?:/b/{NAME})?/o/(?P<target>[^/]+)"
OBJECT = rf"(?P<kind>/upload|/download)?(?:/storage/v1)?/b/{NAME}(?:/o(?:/(?P<name>[^/]+)(?:/{COPY})?)?)?"
TIME = "2026-01-01T00:00:00.000Z"


class RefusedError(Exception):
    """Answered with this status."""


class Bucket:
    """{name of an object: (bytes, generation)}, and what is asked of it over HTTP."""

    def __init__(self):
        self.objects, self.uploads, self.requests = {}, {}, []
        self.lock, self.numbers = threading.Lock(), itertools.count(1)

    def put(self, name: str, content: bytes, query: dict) -> dict:
        """Writes an object whole, if the conditions hold; returns its description."""
        with self.lock:
            self.require(name, query)
            self.objects[name] = content, next(self.numbers)
        return self.describe(name)

    def delete(self, name: str, query: dict) -> None:
        with self.lock:
            self.require(name, query)
            if self.objects.pop(name, None) is None:
                raise RefusedError(404)

    def require(self, name: str, query: dict) -> None:
        """Raises RefusedError if the object is not of the generation that a request names; 0 is that of none."""
        _, generation = self.objects.get(name, (b"", 0))
        if "ifGenerationMatch" in query and int(query["ifGenerationMatch"]) != generation:
            raise RefusedError(412)
        if "ifGenerationNotMatch" in query and int(query["ifGenerationNotMatch"]) == generation:
            raise RefusedError(304)

    def describe(self, name: str) -> dict:
        if name not in self.objects:
            raise RefusedError(404)
        content, generation = self.objects[name]
        sizes = {"size": str(len(content)), "generation": str(generation), "metageneration": "1"}
        times = dict.fromkeys(("timeCreated", "updated"), TIME)
        return {"kind": "storage#object", "bucket": NAME, "name": name, "storageClass": "STANDARD"} | sizes | times

    def listed(self, query: dict) -> dict:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        first, last = query.get("startOffset", ""), query.get("endOffset", "")
        items, folders = [], set()
        for name in sorted(self.objects):
            if not name.startswith(prefix) or name < first or (last and name >= last):
                continue
            inner, found, _ = name[len(prefix) :].partition(delimiter) if delimiter else (name, "", "")
            if found:
                folders.add(prefix + inner + delimiter)
            else:
                items.append(self.describe(name))
        return {"kind": "storage#objects", "items": items, "prefixes": sorted(folders)}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    bucket: Bucket

    def answer(self) -> None:
        url = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query, keep_blank_values=True).items()}
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.bucket.requests.append((self.command, url.path))
        try:
            status, headers, content = self.serve(url.path, query, body)
        except RefusedError as refused:
            status, headers, content = refused.args[0], {}, b""
        if isinstance(content, dict):
            headers, content = headers | {"Content-Type": "application/json"}, json.dumps(content).encode()
        with contextlib.suppress(ConnectionError):  # a client may be gone before it has read the answer
            self.send_response(status)
            for key, value in (headers | {"Content-Length": str(len(content))}).items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_DELETE = answer  # noqa: N815

    def serve(self, path: str, query: dict, body: bytes) -> tuple[int, dict, dict | bytes]:
        found = re.fullmatch(OBJECT, path)
        if not found:
            raise RefusedError(404)
        name, target = (unquote(found[part] or "") for part in ("name", "target"))
        if found["kind"] == "/upload":
            return self.upload(query, body)
        if target:
            return 200, {}, self.copied(name, target, found["how"])
        if self.command == "DELETE":
            self.bucket.delete(name, query)
            return 204, {}, b""
        if self.command != "GET":
            raise RefusedError(501)
        if not name:
            is_list = path.endswith("/o")
            return 200, {}, self.bucket.listed(query) if is_list else {"kind": "storage#bucket", "name": NAME}
        about = self.bucket.describe(name)
        self.bucket.require(name, query)
        return (200, {}, about) if query.get("alt") != "media" else self.media(name, about)

    def copied(self, name: str, target: str, how: str) -> dict:
        """An object under another name, and with "move" no longer under its own."""
        about = self.bucket.put(target, self.bucket.objects[name][0], {})
        if how == "rewrite":
            return {"kind": "storage#rewriteResponse", "done": True, "resource": about}
        self.bucket.delete(name, {})
        return about

    def media(self, name: str, about: dict) -> tuple[int, dict, bytes]:
        """The content of an object, or the part of it that a request asks for."""
        content = self.bucket.objects[name][0]
        headers = {"x-goog-generation": about["generation"], "x-goog-stored-content-length": about["size"]}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is None:
            return 200, headers, content
        start, stop = int(asked[1]), min(int(asked[2] or len(content)) + 1, len(content))
        if start >= len(content):
            raise RefusedError(416)
        return 206, headers | {"Content-Range": f"bytes {start}-{stop - 1}/{len(content)}"}, content[start:stop]

    def upload(self, query: dict, body: bytes) -> tuple[int, dict, dict | bytes]:
        if self.command == "PUT" or "upload_id" in query:
            return self.upload_part(query, body)
        if query["uploadType"] == "resumable":
            query["name"] = query.get("name") or json.loads(body)["name"]
            number = str(next(self.bucket.numbers))
            self.bucket.uploads[number] = query, b""
            return 200, {"Location": f"http://{self.headers['Host']}{self.path}&upload_id={number}"}, b""
        if query["uploadType"] == "multipart":
            head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
            about, content = email.message_from_bytes(head + body).get_payload()
            name, body = json.loads(about.get_payload())["name"], content.get_payload(decode=True)
            return 200, {}, self.bucket.put(name, body, query)
        return 200, {}, self.bucket.put(query["name"], body, query)

    def upload_part(self, query: dict, body: bytes) -> tuple[int, dict, dict | bytes]:
        first, content = self.bucket.uploads[query["upload_id"]]
        content += body
        total = self.headers.get("Content-Range", "").rpartition("/")[2]
        if total == "*":
            self.bucket.uploads[query["upload_id"]] = first, content
            return 308, {"Range": f"bytes=0-{len(content) - 1}"}, b""
        return 200, {}, self.bucket.put(first["name"], content, first)

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):
            super().handle()

    def log_message(self, *_) -> None:
        """Prints nothing."""


@contextlib.contextmanager
def served() -> Iterator[tuple[Bucket, dict[str, str]]]:
    """An empty bucket, and the variables by which libraries find it."""
    bucket = Bucket()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Of", (Handler,), {"bucket": bucket}))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}"
    names = dict.fromkeys(("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL", "CLOUD_STORAGE_EMULATOR_ENDPOINT"), url)
    names |= {"GOOGLE_CLOUD_PROJECT": NAME, "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none"}
    try:
        yield (
            bucket,
            names | {"GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "no"},
        )  # else gcsfs asks Google for the bucket's kind
    finally:
        server.shutdown()
        server.server_close()

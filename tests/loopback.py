"""A web server on loopback that serves bytes, supports range requests, and fails on demand."""

import contextlib
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server:
    """`files` by path; `failures` by path: the failures of the next requests, in order; later requests succeed.
    `requests` are the (path, Range header) received.

    A failure is a status (404), "html" (a web page), "cut" (half of the requested bytes), "cut-now" (no byte),
    "no-range" (the whole file, whatever was requested), "other" (the same length, other bytes), "wrong-range" (from the
    start, and the headers say so), "hang" (no response until the server closes).
    """

    def __init__(self):
        self.files, self.failures, self.requests = {}, {}, []
        self.closed = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                outer.answer(self)

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.http.server_port}/"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def close(self):
        self.closed.set()
        self.http.shutdown()
        self.http.server_close()

    def answer(self, request):
        name = request.path.lstrip("/")
        requested = request.headers.get("Range")
        self.requests.append((name, requested))
        failures = self.failures.get(name, [])
        failure = failures.pop(0) if failures else None
        if failure == "hang":
            self.closed.wait(20)
            return
        if name not in self.files or isinstance(failure, int):
            self.send(request, failure or 404, b"not here", "text/plain")
            return
        if failure == "html":
            self.send(request, 200, b"<html>Please log in</html>", "text/html; charset=utf-8")
            return
        content = self.files[name]
        if failure == "other":
            content = bytes(b ^ 1 for b in content)
        status, start, headers = 200, 0, {}
        if requested and failure != "no-range":
            start = int(re.fullmatch(r"bytes=(\d+)-", requested)[1])
            headers = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
            status = 416 if start >= len(content) else 206
        if failure == "wrong-range":
            start, headers = 0, {"Content-Range": f"bytes 0-{len(content) - 1}/{len(content)}"}
        body = content[start:]
        sent = {"cut": len(body) // 2, "cut-now": 0}.get(failure, len(body))
        self.send(request, status, body, "application/octet-stream", headers, sent)

    def send(self, request, status, body, content_type, headers=(), sent=None):
        """Send a response, of whose body only the first `sent` bytes."""
        request.send_response(status)
        request.send_header("Content-Type", content_type)
        request.send_header("Content-Length", str(len(body)))
        for key, value in dict(headers).items():
            request.send_header(key, value)
        request.end_headers()
        with contextlib.suppress(ConnectionError):
            request.wfile.write(body[:sent])
        request.close_connection = True

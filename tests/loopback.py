"""A web server on loopback that serves bytes, with range requests, and fails as it is told."""

import contextlib
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server:
    """`files` by path; `failures` by path: what each next request meets, first to last, before all goes well.

    A failure is a status (404), "html", "cut" (half of what was asked for), "cut-now" (no byte), "no-range" (all of
    the file whatever was asked for), "other" (as long, but of other bytes), "wrong-range" (from the start, and says
    so), "hang" (nothing, until the end).
    """

    def __init__(self):
        self.files, self.failures, self.seen = {}, {}, []
        self.over = threading.Event()
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
        self.over.set()
        self.http.shutdown()
        self.http.server_close()

    def answer(self, request):
        name = request.path.lstrip("/")
        wanted = request.headers.get("Range")
        self.seen.append((name, wanted))
        waiting = self.failures.get(name, [])
        failure = waiting.pop(0) if waiting else None
        if failure == "hang":
            self.over.wait(20)
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
        start = (
            int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and failure != "no-range" else 0
        )
        status, more = 200, {}
        if wanted and failure != "no-range":
            status, more = (
                206,
                {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"},
            )
            if start >= len(content):
                status = 416
        if failure == "wrong-range":
            start, more = 0, {"Content-Range": f"bytes 0-{len(content) - 1}/{len(content)}"}
        body = content[start:]
        sent = {"cut": len(body) // 2, "cut-now": 0}.get(failure, len(body))
        self.send(request, status, body, "application/octet-stream", more, sent)

    def send(self, request, status, body, kind, more=(), sent=None):
        request.send_response(status)
        request.send_header("Content-Type", kind)
        request.send_header("Content-Length", str(len(body)))
        for key, value in dict(more).items():
            request.send_header(key, value)
        request.end_headers()
        with contextlib.suppress(ConnectionError):
            request.wfile.write(body[:sent])
        request.close_connection = True

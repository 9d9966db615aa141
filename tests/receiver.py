"""A receiver of webhooks: a server process that confirms subscriptions, keeps what it is sent, and answers as it is told to.

    python -m tests.receiver [certificate key]        # prints its port

PUT /mode {"status": 503, "wait_s": 0, ..} decides how POST is answered from then on, GET /seen lists the notifications.
"""

import json
import ssl
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import httpx


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_PUT(self):
        self.server.mode = json.loads(self._body())
        self._answer(200, b"")

    def do_GET(self):
        self._answer(200, json.dumps(self.server.seen).encode())

    def do_POST(self):
        mode, body = self.server.mode, self._body()
        path = urlsplit(self.path)
        mode = mode.get(path.path, mode)
        token = parse_qs(path.query).get("validationToken")
        self.server.seen.append({"path": self.path, "headers": dict(self.headers.items()), "body": body.decode(), "at": time.time(),
                                 "handshake": token is not None})
        time.sleep(mode.get("wait_s", 0))
        if mode.get("hang_up"):
            self.close_connection = True
            return
        if mode.get("drip"):
            for byte in b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc":
                self.wfile.write(bytes([byte]))
                time.sleep(mode["drip"])
            return
        answer = mode["answer"].encode() if "answer" in mode else token[0].encode() if token else b"thanks"
        self._answer(mode.get("status", 200), answer, mode.get("headers", {}))

    def _body(self):
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _answer(self, status, body, headers=None):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Receiver:
    def __init__(self, *tls):
        self._tls = [str(file) for file in tls]
        self.start()

    def start(self, port=0):
        """Begin, or begin again after `close`, on the same port."""
        command = [sys.executable, "-m", "tests.receiver", str(getattr(self, "port", port)), *self._tls]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.port = int(self.process.stdout.readline())
        self.base = f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"
        self._client = httpx.Client(base_url=self.base, verify=False)

    def url(self, path="/hook"):
        return self.base + path

    def mode(self, **mode):
        self._client.put("/mode", json=mode).raise_for_status()

    def calls(self, path=None):
        """Notifications so far, without handshakes; those to one path."""
        return [call for call in self._client.get("/seen").json() if not call["handshake"] and path in (None, urlsplit(call["path"]).path)]

    def handshakes(self):
        return [call for call in self._client.get("/seen").json() if call["handshake"]]

    def items(self, path=None):
        """Every item that it was told, in order."""
        return [item for call in self.calls(path) for item in json.loads(call["body"])["value"]]

    def close(self):
        self._client.close()
        self.process.kill()
        self.process.communicate()


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), _Handler)
    server.daemon_threads, server.mode, server.seen = True, {}, []
    if len(sys.argv) > 2:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*sys.argv[2:])
        server.socket = context.wrap_socket(server.socket, server_side=True)
    print(server.server_port, flush=True)
    server.serve_forever()

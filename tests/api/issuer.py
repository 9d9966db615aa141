"""An issuer of tokens: a server process that serves what it is told to, and signatures made with cryptography alone, not with PyJWT.

    python -m tests.api.issuer        # prints its port; PUT /path with JSON decides what GET /path answers
"""

import base64
import json
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import httpx
from cryptography.hazmat.primitives import hashes, hmac, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

DISCOVERY, KEYS = "/tenant/v2.0/.well-known/openid-configuration", "/keys"


class _Handler(BaseHTTPRequestHandler):
    answers: ClassVar = {}               # path -> (status, seconds to wait, document)
    asked: ClassVar = {}                 # path -> how often

    def do_PUT(self):
        self.answers[self.path] = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self._answer(200, {})

    def do_GET(self):
        if self.path == "/asked":
            return self._answer(200, self.asked)
        self.asked[self.path] = self.asked.get(self.path, 0) + 1
        status, wait_s, document = self.answers.get(self.path, (404, 0, {}))
        time.sleep(wait_s)
        self._answer(status, document)

    def _answer(self, status, document):
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Issuer:
    """The process, and the keys that it publishes. `url` is what `jwt_issuer` is to be."""

    def __init__(self):
        self.process = subprocess.Popen([sys.executable, "-m", "tests.api.issuer"], stdout=subprocess.PIPE, text=True)
        self.base = f"http://127.0.0.1:{int(self.process.stdout.readline())}"
        self.url = f"{self.base}/tenant/v2.0"
        self.put(DISCOVERY, {"issuer": self.url, "jwks_uri": self.base + KEYS})

    def put(self, path, document, status=200, wait_s=0.0):
        httpx.put(self.base + path, json=[status, wait_s, document]).raise_for_status()

    def publish(self, *keys):
        self.put(KEYS, {"keys": [key if isinstance(key, dict) else key.jwk() for key in keys]})

    def asked(self, path=KEYS):
        return httpx.get(f"{self.base}/asked").json().get(path, 0)

    def close(self):
        self.process.kill()
        self.process.communicate()


class Key:
    """A key pair of the issuer; `sign` makes whole tokens with it."""

    def __init__(self, kid, algorithm="RS256"):
        self.kid, self.algorithm = kid, algorithm
        self.private = {"RS": lambda: rsa.generate_private_key(65537, 2048), "PS": lambda: rsa.generate_private_key(65537, 2048),
                        "ES": lambda: ec.generate_private_key(ec.SECP256R1()), "Ed": ed25519.Ed25519PrivateKey.generate}[algorithm[:2]]()

    def jwk(self, **more):
        public = self.private.public_key()
        common = {"kid": self.kid, "use": "sig", "alg": self.algorithm}
        if isinstance(public, rsa.RSAPublicKey):
            numbers = public.public_numbers()
            common |= {"kty": "RSA", "n": _b64(_bytes(numbers.n)), "e": _b64(_bytes(numbers.e))}
        elif isinstance(public, ec.EllipticCurvePublicKey):
            numbers = public.public_numbers()
            common |= {"kty": "EC", "crv": "P-256", "x": _b64(numbers.x.to_bytes(32)), "y": _b64(numbers.y.to_bytes(32))}
        else:
            raw = public.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
            common |= {"kty": "OKP", "crv": "Ed25519", "x": _b64(raw)}
        return {name: value for name, value in (common | more).items() if value is not None}

    def pem(self):
        return self.private.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)

    def sign(self, claims, **header):
        """A token; `header` replaces what is in its header, None leaves it out."""
        header = {"typ": "JWT", "alg": self.algorithm, "kid": self.kid} | header
        text = ".".join(_b64(json.dumps(part).encode()) for part in ({n: v for n, v in header.items() if v is not None}, claims))
        return f"{text}.{_b64(self._signature(text.encode()))}"

    def _signature(self, text):
        match self.algorithm[:2]:
            case "RS":
                return self.private.sign(text, padding.PKCS1v15(), hashes.SHA256())
            case "PS":
                return self.private.sign(text, padding.PSS(padding.MGF1(hashes.SHA256()), 32), hashes.SHA256())
            case "ES":
                r, s = decode_dss_signature(self.private.sign(text, ec.ECDSA(hashes.SHA256())))
                return r.to_bytes(32) + s.to_bytes(32)
        return self.private.sign(text)


def sign_with_secret(secret, claims, kid):
    """A token signed with HMAC, as one who knows only what is public could make it."""
    text = ".".join(_b64(json.dumps(part).encode()) for part in ({"typ": "JWT", "alg": "HS256", "kid": kid}, claims))
    mac = hmac.HMAC(secret, hashes.SHA256())
    mac.update(text.encode())
    return f"{text}.{_b64(mac.finalize())}"


def _bytes(number):
    return number.to_bytes((number.bit_length() + 7) // 8)


def _b64(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    print(server.server_port, flush=True)
    server.serve_forever()

"""Calls to addresses that somebody else has chosen, on a real receiver: where they may go, how long, and what of an answer counts."""

import ipaddress
import socket
import ssl
import time

import pytest

from skylift.errors import SetupError
from skylift.migration import outgoing
from skylift.migration.outgoing import MOST_BYTES, CallFailed, call, check_url, why_not
from skylift.settings import networks
from tests.receiver import Receiver

LOOPBACK = networks("127.0.0.0/8")


@pytest.fixture(scope="module")
def receiver():
    receiver = Receiver()
    yield receiver
    receiver.close()


@pytest.fixture(autouse=True)
def friendly(receiver):
    receiver.mode()


def post(url, allowed=LOOPBACK, within_s=5.0):
    return call(url, b"{}", {"Content-Type": "application/json"}, within_s=within_s, allowed=allowed)


@pytest.mark.rule("K6")
@pytest.mark.parametrize(("address", "allowed", "plain", "reason"), [
    ("93.184.216.34", "", False, ""),
    ("2606:2800:220:1:248:1893:25c8:1946", "", False, ""),
    ("93.184.216.34", "", True, "https only"),
    ("127.0.0.1", "", False, "private"), ("127.8.9.1", "", False, "private"), ("::1", "", False, "private"),
    ("10.1.2.3", "", False, "private"), ("172.16.0.1", "", False, "private"), ("192.168.1.1", "", False, "private"),
    ("100.64.0.1", "", False, "private"), ("192.0.2.1", "", False, "private"), ("fd00:ec2::254", "", False, "private"),
    ("fec0::1", "", False, "private"), ("240.0.0.1", "", False, "private"), ("198.18.0.1", "", False, "private"),
    ("::ffff:127.0.0.1", "", False, "private"), ("::ffff:10.0.0.1", "", False, "private"), ("64:ff9b::7f00:1", "", False, "private"),
    ("2002:7f00:1::", "", False, "private"), ("2002:a00:1::", "", False, "private"),
    ("169.254.169.254", "", False, "link-local"), ("fe80::1%eth0", "", False, "link-local"),
    ("::ffff:169.254.169.254", "", False, "link-local"),
    ("64:ff9b::a9fe:a9fe", "", False, "link-local"), ("0.0.0.0", "", False, "link-local"), ("::", "", False, "link-local"),
    ("224.0.0.1", "", False, "link-local"), ("ff02::1", "", False, "link-local"),
    ("127.0.0.1", "127.0.0.0/8", False, ""), ("127.0.0.1", "127.0.0.1", True, ""), ("::ffff:127.0.0.1", "127.0.0.0/8", True, ""),
    ("10.1.2.3", "10.1.0.0/16 fd00::/8", False, ""), ("fd00::1", "10.1.0.0/16 fd00::/8", True, ""),
    ("10.2.2.3", "10.1.0.0/16", False, "private"),
    ("169.254.169.254", "0.0.0.0/0 ::/0", False, "link-local"), ("fe80::1", "0.0.0.0/0 ::/0", False, "link-local"),
])
def test_private_addresses_are_called_if_allowed_and_link_local_ones_never(address, allowed, plain, reason):
    why = why_not(address, networks(allowed), plain=plain)
    assert reason in why and bool(why) == bool(reason)


@pytest.mark.rule("K6")
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "[::ffff:127.0.0.1]", "127.1", "0"])
def test_a_private_host_is_not_called_however_it_is_spelt(receiver, host):
    before = len(receiver.calls())
    with pytest.raises(CallFailed, match=r"private|link-local|Name or service|not known|address"):
        post(f"http://{host}:{receiver.port}/", allowed=[])
    assert len(receiver.calls()) == before


@pytest.mark.rule("K6")
def test_a_name_is_resolved_once_and_the_address_that_was_checked_is_called(receiver, monkeypatch):
    """DNS rebinding: the second answer for the name would lead elsewhere."""
    asked, real = [], socket.getaddrinfo

    def rebind(host, port, *arguments, **options):
        asked.append(host)
        if host == "rebind.example":
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1" if asked.count(host) == 1 else "127.6.6.6", port))]
        return real(host, port, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", rebind)
    assert post(f"http://rebind.example:{receiver.port}/", networks("127.0.0.1"))[0] == 200
    assert asked.count("rebind.example") == 1
    assert receiver.calls()[-1]["headers"]["Host"] == f"rebind.example:{receiver.port}"


@pytest.mark.rule("K6")
def test_of_several_addresses_only_those_are_tried_that_may_be_called(receiver, monkeypatch):
    tried, real = [], outgoing.httpcore.AnyIOBackend.connect_tcp

    async def connect(self, host, *arguments, **options):
        tried.append(host)
        return await real(self, host, *arguments, **options)

    monkeypatch.setattr(outgoing.httpcore.AnyIOBackend, "connect_tcp", connect)
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, port, *_, **__: [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))
        for address in ("169.254.169.254", "10.0.0.1", "127.9.9.9", "127.0.0.1")])
    assert post(f"http://many.example:{receiver.port}/")[0] == 200
    assert tried in (["127.9.9.9", "127.0.0.1"], ["127.9.9.9"])        # whether all of 127/8 answers is the machine's


@pytest.mark.rule("K6")
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_answers_and_not_followed(receiver, status):
    receiver.mode(status=status, headers={"Location": receiver.url("/elsewhere")})
    assert post(receiver.url())[0] == status
    assert receiver.calls("/elsewhere") == []


def test_the_proxy_of_the_environment_is_not_used(receiver, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    assert post(receiver.url())[0] == 200


@pytest.mark.rule("K5")
@pytest.mark.parametrize(("mode", "message"), [
    ({"wait_s": 3}, "no answer within 0.5 seconds"),
    ({"drip": 0.2}, "no answer within 0.5 seconds"),
    ({"hang_up": True}, "disconnected"),
])
def test_a_receiver_that_hangs_drips_or_hangs_up_does_not_hold_the_caller(receiver, mode, message):
    receiver.mode(**mode)
    began = time.monotonic()
    with pytest.raises(CallFailed, match=message):
        post(receiver.url(), within_s=0.5)
    assert time.monotonic() - began < 2


def test_nobody_there_is_told(receiver):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with pytest.raises(CallFailed):
        post(f"http://127.0.0.1:{port}/")
    with pytest.raises(CallFailed):
        post("http://no-such-host.invalid/")
    with pytest.raises(CallFailed):
        post(f"http://{'a' * 70}.example/")


def test_of_a_large_answer_only_the_beginning_is_read(receiver):
    receiver.mode(answer="x" * 5_000_000)
    assert post(receiver.url()) == (200, b"x" * MOST_BYTES)


def test_a_certificate_that_nobody_vouches_for_is_refused(tmp_path, certificate, monkeypatch):
    receiver = Receiver(certificate / "cert.pem", certificate / "key.pem")
    try:
        with pytest.raises(CallFailed, match="certificate"):
            post(receiver.url())
        monkeypatch.setattr(outgoing, "_trust", lambda: ssl.create_default_context(cafile=certificate / "cert.pem"))
        assert post(receiver.url())[0] == 200
        with pytest.raises(CallFailed, match="certificate"):
            post(f"https://localhost:{receiver.port}/")        # the certificate is for the address
    finally:
        receiver.close()


@pytest.mark.rule("K1")
@pytest.mark.parametrize("url", [
    "", "x", "/hook", "//example.com", "ftp://example.com/", "file:///etc/passwd", "javascript:alert(1)", "http://", "https://a b/",
    "https://user@example.com/", "https://u:p@example.com/", "https://example.com/#x", "https://example.com:99999/",
    "https://example.com:0/", "https://[::1/", "https://exa\nmple.com/", "https://example.com/\u202e"])
def test_what_cannot_be_called_is_refused(url):
    with pytest.raises(SetupError, match="notificationUrl is not a URL that can be called"):
        check_url(url)


@pytest.mark.parametrize("url", ["https://example.com", "https://example.com:8443/a/b?c=d%20e&f=%2B", "http://127.0.0.1:1/", "https://[2606::1]/",
                                 "https://bücher.example/", "HTTPS://EXAMPLE.COM/"])
def test_what_can_be_called_is_not(url):
    check_url(url)


def test_networks_are_what_the_setting_lists():
    assert networks("10.0.0.0/8 ::1") == [ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("::1/128")]

"""Keys of a deployment: a server that is known by them, and one that is not."""

from __future__ import annotations

import datetime
import http.server
import os
import re
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key

from airtune.deploy import keys as deploy_keys
from airtune.deploy.gateway import fingerprint
from airtune.deploy.keys import (
    ServerKeys,
    check_server_keys,
    expiry_warnings,
    make_device_key,
    make_server_keys,
    public_pem,
)
from airtune.deploy.processes import check_clock, check_server, split_address, sweep
from airtune.errors import InputError


@contextmanager
def tls_server(keys: ServerKeys, host: str = "127.0.0.1") -> Iterator[tuple[str, int]]:
    """Shake hands with one client after the other."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(keys.certificate, keys.private_key)
    with socket.create_server((host, 0)) as listener:

        def work() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                try:
                    context.wrap_socket(connection, server_side=True).close()
                except (ssl.SSLError, OSError):
                    connection.close()

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        yield listener.getsockname()
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(timeout=5)


def test_a_device_knows_the_server_by_the_authority(tmp_path: Path) -> None:
    keys = make_server_keys(tmp_path / "a", ["192.0.2.7", "server.example"])
    other = make_server_keys(tmp_path / "b", ["192.0.2.7"])
    with tls_server(keys) as address:
        check_server(address, keys.authority)
        with pytest.raises(InputError, match="certificate is not accepted"):
            check_server(address, other.authority)
    with pytest.raises(InputError, match="cannot be reached"):
        check_server(address, keys.authority)


def test_a_certificate_for_another_address_is_refused(tmp_path: Path) -> None:
    keys = make_server_keys(tmp_path, ["192.0.2.7"])
    with (
        tls_server(keys, "127.0.0.2") as address,
        pytest.raises(InputError, match="not accepted"),
    ):
        check_server(address, keys.authority)


def test_a_server_without_tls_is_named_as_such(tmp_path: Path) -> None:
    keys = make_server_keys(tmp_path, ["127.0.0.1"])
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(100)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        with pytest.raises(InputError, match="does not speak TLS"):
            check_server(listener.getsockname(), keys.authority)
        thread.join(timeout=5)


def test_private_files_are_closed_to_others_and_never_overwritten(tmp_path: Path) -> None:
    keys = make_server_keys(tmp_path, ["127.0.0.1"])
    device = make_device_key(tmp_path, "pi-1")
    for path in (keys.private_key, tmp_path / "ca.key", device.private_key):
        assert path.stat().st_mode & 0o077 == 0
    with pytest.raises(InputError, match="never overwritten"):
        make_server_keys(tmp_path, ["127.0.0.1"])
    with pytest.raises(InputError, match="never overwritten"):
        make_device_key(tmp_path, "pi-1")


def test_a_renewed_certificate_has_the_same_authority(tmp_path: Path) -> None:
    first = make_server_keys(tmp_path, ["127.0.0.1"])
    authority = first.authority.read_bytes()
    first.certificate.unlink()
    first.private_key.unlink()
    renewed = make_server_keys(tmp_path, ["127.0.0.1"])
    assert renewed.authority.read_bytes() == authority
    with tls_server(renewed) as address:
        check_server(address, renewed.authority)


def test_device_keys_are_what_flower_reads(tmp_path: Path) -> None:
    made = make_device_key(tmp_path, "pi-1")
    private = load_ssh_private_key(made.private_key.read_bytes(), None)
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    pem = public_pem(made.public_key)
    assert pem.startswith(b"-----BEGIN PUBLIC KEY-----")
    assert len(fingerprint(pem)) == 16
    with pytest.raises(InputError, match="not an OpenSSH public key"):
        public_pem(made.private_key)


@pytest.mark.parametrize("name", ["", "../pi", "a b", ".hidden"])
def test_device_names_are_file_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="device name"):
        make_device_key(tmp_path, name)


@pytest.mark.parametrize("address", ["https://server", "server:9443", "a b", ""])
def test_addresses_are_names_or_ips(tmp_path: Path, address: str) -> None:
    with pytest.raises(InputError, match="--address"):
        make_server_keys(tmp_path, [address])
    with pytest.raises(InputError, match="--address"):
        make_server_keys(tmp_path, [])


@pytest.mark.parametrize("address", ["server", "server:", ":9443", "server:0", "server:x"])
def test_server_addresses_have_a_port(address: str) -> None:
    with pytest.raises(InputError, match="write host:port"):
        split_address(address)
    assert split_address("server:9443") == ("server", 9443)


def test_a_certificate_warns_before_it_ends_and_is_renewed(tmp_path: Path) -> None:
    make_server_keys(tmp_path, ["127.0.0.1"], days=100)
    now = datetime.datetime.now(datetime.UTC)
    authority = (tmp_path / "ca.crt").read_bytes()
    assert expiry_warnings(tmp_path, now) == []
    soon = expiry_warnings(tmp_path, now + datetime.timedelta(days=80))
    assert len(soon) == 1
    assert "ends in 19 days" in soon[0]
    assert "--renew" in soon[0]
    assert "has ended" in expiry_warnings(tmp_path, now + datetime.timedelta(days=101))[0]
    old = (tmp_path / "server.crt").read_bytes()
    with pytest.raises(InputError, match="never overwritten"):
        make_server_keys(tmp_path, ["127.0.0.1"])
    make_server_keys(tmp_path, ["127.0.0.1"], renew=True)
    assert (tmp_path / "server.crt.old").read_bytes() == old
    assert (tmp_path / "ca.crt").read_bytes() == authority
    assert expiry_warnings(tmp_path, now + datetime.timedelta(days=80)) == []


@pytest.mark.parametrize(
    ("authority_key", "said"),
    [(None, r"ca\.key' is missing"), (b"junk", r"ca\.key' is not a private key"), (b"", "not")],
)
def test_a_renewal_without_the_authoritys_key_leaves_the_old_pair(
    tmp_path: Path, authority_key: bytes | None, said: str
) -> None:
    make_server_keys(tmp_path, ["127.0.0.1"])
    (tmp_path / "ca.key").unlink()  # kept offline
    if authority_key is not None:
        (tmp_path / "ca.key").write_bytes(authority_key)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(InputError, match=said):
        make_server_keys(tmp_path, ["127.0.0.1"], renew=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_renewal_where_no_authority_is_makes_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no authority"):
        make_server_keys(tmp_path, ["127.0.0.1"], renew=True)
    assert list(tmp_path.iterdir()) == []


def test_another_authoritys_key_is_refused(tmp_path: Path) -> None:
    make_server_keys(tmp_path / "a", ["127.0.0.1"])
    make_server_keys(tmp_path / "b", ["127.0.0.1"])
    (tmp_path / "a" / "ca.key").write_bytes((tmp_path / "b" / "ca.key").read_bytes())
    with pytest.raises(InputError, match=r"ca\.key' is not the key of '.*ca\.crt'"):
        make_server_keys(tmp_path / "a", ["127.0.0.1"], renew=True)
    assert (tmp_path / "a" / "server.crt").exists()


def test_a_folder_for_keys_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "afile").touch()
    for make in (
        lambda folder: make_server_keys(folder, ["127.0.0.1"]),
        lambda folder: make_device_key(folder, "pi-1"),
    ):
        with pytest.raises(InputError, match=r"^--dir '.*afile' is a file: give a folder"):
            make(tmp_path / "afile")
        with pytest.raises(InputError, match="cannot make the folder '/proc/foo'"):
            make(Path("/proc/foo"))
    (tmp_path / ".pi-1.new").mkdir()  # a file that cannot be written
    with pytest.raises(InputError, match=r"cannot write '.*pi-1\.new'"):
        make_device_key(tmp_path, "pi-1")


@pytest.mark.parametrize("name", ["ca.crt", "server.crt", "server.key"])
def test_damaged_keys_are_named_before_the_server_starts(tmp_path: Path, name: str) -> None:
    keys, other = tmp_path / "keys", tmp_path / "other"
    make_server_keys(keys, ["127.0.0.1"])
    make_server_keys(other, ["127.0.0.1"])
    check_server_keys(keys)
    if name == "server.key":
        (keys / name).write_bytes((other / name).read_bytes())
        with pytest.raises(InputError, match=r"server\.key' is not the key of '.*server\.crt'"):
            check_server_keys(keys)
    (keys / name).write_bytes(b"junk")
    with pytest.raises(InputError, match=f"{re.escape(name)}' is not a "):
        check_server_keys(keys)
    if name != "server.key":
        with pytest.raises(InputError, match=f"{re.escape(name)}' is not a certificate"):
            expiry_warnings(keys)
    (keys / name).unlink()
    with pytest.raises(InputError, match=f"{re.escape(name)}' is missing"):
        check_server_keys(keys)


@pytest.mark.parametrize(("days", "said"), [(2.0, "is not yet valid"), (-400.0, "has expired")])
def test_a_certificate_out_of_its_time_is_named(
    days: float, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    make_server_keys(tmp_path, ["127.0.0.1"])  # the authority's time is right
    made = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days)
    then = SimpleNamespace(now=lambda zone: made)
    shifted = SimpleNamespace(datetime=then, UTC=datetime.UTC, timedelta=datetime.timedelta)
    with monkeypatch.context() as patched:
        patched.setattr(deploy_keys, "datetime", shifted)
        keys = make_server_keys(tmp_path, ["127.0.0.1"], days=365, renew=True)
    with (
        tls_server(keys) as address,
        pytest.raises(InputError, match=f"its certificate {said} by this machine's clock"),
    ):
        check_server(address, keys.authority)


class Server(http.server.BaseHTTPRequestHandler):
    """Answers with a clock of its own."""

    ahead_s = 0.0

    def do_GET(self) -> None:
        self.send_response(405)
        self.end_headers()

    def date_time_string(self, timestamp: float | None = None) -> str:
        return super().date_time_string(time.time() + self.ahead_s)

    def log_message(self, *arguments: object) -> None: ...


@pytest.mark.parametrize(
    ("ahead_s", "said"),
    [(0.0, None), (200.0, None), (400.0, "behind"), (-60.0, "s ahead of")],
)
def test_a_clock_that_is_off_is_named(ahead_s: float, said: str | None) -> None:
    handler = type("Handler", (Server,), {"ahead_s": ahead_s})
    with http.server.HTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        address = ("127.0.0.1", server.server_port)
        try:
            if said is None:
                check_clock(address, None)
            else:
                with pytest.raises(InputError, match=f"this machine's clock is .*{said}"):
                    check_clock(address, None)
        finally:
            server.shutdown()
            thread.join()


def test_what_a_killed_server_left_is_ended(tmp_path: Path) -> None:
    environment = {**os.environ, "FLWR_HOME": str(tmp_path / "flower")}
    left = subprocess.Popen([sys.executable, "-c", "input()"], env=environment, stdin=-1)
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=-1)
    with left, other:
        assert sweep(tmp_path / "flower") == 1
        assert left.wait(10) != 0
        assert other.poll() is None
        other.kill()
    assert sweep(tmp_path / "flower") == 0

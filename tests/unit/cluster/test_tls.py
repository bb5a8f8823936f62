"""The certificates of cluster/tls.sh, in a TLS connection on loopback in which both ends show one, as Ray's do."""

from __future__ import annotations

import socket
import ssl
import subprocess
import threading
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[3] / "cluster" / "tls.sh"


def tls(*args: str | Path) -> None:
    subprocess.run([SCRIPT, *args], check=True, capture_output=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificates of two nodes of one authority, and of a node of another."""
    folder = tmp_path_factory.mktemp("tls")
    for authority, nodes in (("ca", {"head": "head.clara.svc", "worker": "10.1.2.3"}), ("other", {"stranger": "head"})):
        tls("ca", folder / authority)
        for node, name in nodes.items():
            tls("cert", folder / authority, folder / node, name)
    return folder


def context(kind: int, folder: Path, node: str, authority: str) -> ssl.SSLContext:
    made = ssl.SSLContext(kind)
    made.load_cert_chain(folder / node / "tls.crt", folder / node / "tls.key")
    made.load_verify_locations(folder / authority / "ca.crt")
    made.verify_mode = ssl.CERT_REQUIRED
    return made


def greeting(folder: Path, client: str, authority: str, name: str) -> bytes:
    """What a head says to a client over TLS; empty where the head hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            server = context(ssl.PROTOCOL_TLS_SERVER, folder, "head", "ca")
            with connection:
                try:
                    server.wrap_socket(connection, server_side=True).sendall(b"hello")
                except ssl.SSLError:
                    connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            with socket.create_connection(listener.getsockname()) as plain:
                wrapped = context(ssl.PROTOCOL_TLS_CLIENT, folder, client, authority).wrap_socket(
                    plain, server_hostname=name
                )
                try:
                    return wrapped.recv(5)
                except (ssl.SSLError, ConnectionError):
                    return b""
        finally:
            thread.join()


def test_nodes_of_one_authority_meet_by_every_name_of_the_certificate(folder: Path) -> None:
    for name in ("head.clara.svc", "localhost", "127.0.0.1"):
        assert greeting(folder, "worker", "ca", name) == b"hello"


def test_a_wrong_name_and_a_stranger_are_refused(folder: Path) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        greeting(folder, "worker", "ca", "elsewhere.clara.svc")
    with pytest.raises(ssl.SSLCertVerificationError, match="self-signed certificate in certificate chain"):
        greeting(folder, "worker", "other", "head.clara.svc")
    assert greeting(folder, "stranger", "ca", "head.clara.svc") == b"", "it trusts the head, and is not trusted"


def test_keys_are_their_owners_and_an_authority_is_made_once(folder: Path) -> None:
    for key in (folder / "ca" / "ca.key", folder / "head" / "tls.key"):
        assert key.stat().st_mode & 0o777 == 0o600
    with pytest.raises(subprocess.CalledProcessError):
        tls("ca", folder / "ca")
    with pytest.raises(subprocess.CalledProcessError):
        tls("cert", folder / "ca", folder / "nameless")

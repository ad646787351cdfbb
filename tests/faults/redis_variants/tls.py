"""TLS before a server that may have none of its own: a terminating TCP proxy, and the certificates for it.

It never weakens what the client checks: the client's side is TLS as in the world.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import ipaddress
import socket
import ssl
import threading
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

ADDRESS = "127.0.0.1"


class Authority:
    """A certificate authority of a test's own; `ca_path` is what a client must trust."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name("s3tasks test authority")
        self.ca_path = directory / "ca.pem"
        constraints = x509.BasicConstraints(ca=True, path_length=0)
        usage = x509.KeyUsage(
            digital_signature=True, key_cert_sign=True, crl_sign=True, content_commitment=False, key_encipherment=False,
            data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
        )
        identity = x509.SubjectKeyIdentifier.from_public_key(self._key.public_key())
        built = self._builder(self._name, self._key).add_extension(constraints, critical=True)
        built = built.add_extension(usage, critical=True).add_extension(identity, critical=False)
        self.ca_path.write_bytes(built.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))

    def server_context(self, host: str = ADDRESS) -> ssl.SSLContext:
        """A server's side of TLS, with a certificate for that address."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(host))])
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        built = self._builder(_name(host), key).add_extension(names, critical=False).add_extension(issuer, critical=False)
        path = self._directory / f"{host.replace(':', '-')}.pem"
        plain = serialization.NoEncryption()
        path.write_bytes(
            built.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
            + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(path)
        return context

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = dt.datetime.now(dt.timezone.utc)
        day = dt.timedelta(days=1)
        return (
            x509.CertificateBuilder().subject_name(subject).issuer_name(self._name).public_key(key.public_key())
            .serial_number(x509.random_serial_number()).not_valid_before(now - day).not_valid_after(now + day)
        )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


class TlsProxy:
    """Takes TLS connections on 127.0.0.1 and passes what they carry to a plain port. `handshakes` counts those that succeeded."""

    def __init__(self, context: ssl.SSLContext, upstream_port: int) -> None:
        self._context, self._upstream_port = context, upstream_port
        self._listener = socket.create_server((ADDRESS, 0))
        self.port: int = self._listener.getsockname()[1]
        self.handshakes = 0
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    def __enter__(self) -> TlsProxy:  # noqa: PYI034 - Self is not in Python 3.10
        return self

    def __exit__(self, *_: object) -> None:
        for opened in (self._listener, *self._open):
            # Wakes whoever waits on it.
            with contextlib.suppress(OSError):
                opened.shutdown(socket.SHUT_RDWR)
            opened.close()
        for thread in self._threads:
            thread.join(5)

    def _start(self, run: object, *arguments: object) -> None:
        thread = threading.Thread(target=run, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                plain, _ = self._listener.accept()
                self._open.append(plain)
                self._start(self._serve, plain)

    def _serve(self, plain: socket.socket) -> None:
        try:
            secured = self._context.wrap_socket(plain, server_side=True)
        except OSError:
            # A client that does not trust this certificate hangs up.
            plain.close()
            return
        self.handshakes += 1
        upstream = socket.create_connection((ADDRESS, self._upstream_port))
        self._open += [secured, upstream]
        self._start(self._pump, upstream, secured)
        self._pump(secured, upstream)

    @staticmethod
    def _pump(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while received := source.recv(65536):
                target.sendall(received)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)

"""Keys of a deployment: a certificate authority, the server's certificate, a key a device.

Flower authenticates the server by TLS and each device by an elliptic-curve key whose public
half was registered with the server beforehand. Private files are readable by their owner
alone, and nothing that exists is overwritten.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from airtune.errors import InputError
from airtune.record.folder import make_folder

WARN_DAYS = 30
_DEVICE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_ALWAYS = ("localhost", "127.0.0.1")
"""In every server certificate: a device's paced relay is reached by this address."""


@dataclass(frozen=True)
class ServerKeys:
    """Files that `make_server_keys` writes."""

    authority: Path
    """`ca.crt`: what every device needs, to know the server by."""
    certificate: Path
    private_key: Path


@dataclass(frozen=True)
class DeviceKey:
    """Files that `make_device_key` writes."""

    private_key: Path
    """OpenSSH format; never leaves the device."""
    public_key: Path
    """What is registered with the server."""


def make_server_keys(
    folder: Path, addresses: Sequence[str], *, days: int = 825, renew: bool = False
) -> ServerKeys:
    """Make a certificate authority and a server certificate signed by it.

    An authority that is in the folder already is used again, so that a certificate can be
    renewed without touching the devices.

    Args:
        folder: where `ca.crt`, `ca.key`, `server.crt` and `server.key` go.
        addresses: names and IP addresses under which devices reach the server; they become
            the certificate's subject alternative names, beside localhost.
        days: how long the certificate is valid; the authority is valid for ten years.
        renew: move a server certificate that is there aside, to `.old`; devices need nothing new.

    Raises:
        InputError: no address, an address that is neither a name nor an IP, a server
            certificate that exists, or an authority of which a part is missing or damaged.
    """
    if not addresses:
        raise InputError(
            "--address: give at least one name or IP by which devices reach the server"
        )
    names = [_general_name(address) for address in dict.fromkeys((*_ALWAYS, *addresses))]
    make_folder(folder, "--dir")
    keys = ServerKeys(folder / "ca.crt", folder / "server.crt", folder / "server.key")
    if not renew:
        _refuse_existing(keys.certificate, keys.private_key)
    authority, authority_key = _authority(folder, may_make=not renew)
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        _builder(_name(addresses[0]), authority.subject, key, days)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()),
            critical=False,
        )
        .sign(authority_key, hashes.SHA256())
    )
    public = certificate.public_bytes(serialization.Encoding.PEM)
    _write_pair((keys.private_key, _pem(key)), (keys.certificate, public), renew=renew)
    return keys


def make_device_key(folder: Path, name: str, *, renew: bool = False) -> DeviceKey:
    """Make one device's key pair on NIST P-384, in the OpenSSH format that Flower reads.

    With `renew`, a pair that is there is moved aside, to `.old`.

    Raises:
        InputError: the name is not a plain file name, or the key exists.
    """
    if not _DEVICE_NAME.fullmatch(name):
        raise InputError(f"device name '{name}': letters, digits, '.', '_' and '-' only")
    make_folder(folder, "--dir")
    files = DeviceKey(folder / name, folder / f"{name}.pub")
    if not renew:
        _refuse_existing(files.private_key, files.public_key)
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    named = public + f" {name}\n".encode()
    _write_pair((files.private_key, private), (files.public_key, named), renew=renew)
    return files


def check_device_key(path: Path) -> None:
    """Refuse a file that holds no private key of a device.

    Raises:
        InputError: it is missing, cannot be read, or is none.
    """
    made_by = "`airtune deploy keys device` makes it"
    try:
        serialization.load_ssh_private_key(path.read_bytes(), password=None)
    except FileNotFoundError:
        raise InputError(f"--key '{path}': no such file; {made_by}") from None
    except OSError as error:
        raise InputError(f"--key '{path}' cannot be read: {error.strerror}") from None
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise InputError(f"--key '{path}' is no private key of a device; {made_by}") from None


def check_server_keys(folder: Path) -> None:
    """Check that a folder has what a server shows to devices.

    Raises:
        InputError: a file is missing or damaged, or the private key is another certificate's.
    """
    for name in ("ca.crt", "server.crt", "server.key"):
        if not os.path.isfile(folder / name):  # Path's raises where the folder is closed to us
            raise InputError(
                f"'{folder / name}' is missing: make it with `airtune deploy keys server --address "
                f"HOST --dir {folder}`, or ask for --insecure by name"
            )
    _certificate(folder / "ca.crt")
    certificate, key = _certificate(folder / "server.crt"), _any_key(folder / "server.key")
    if certificate.public_key() != key.public_key():
        raise InputError(f"'{folder / 'server.key'}' is not the key of '{folder / 'server.crt'}'")


def expiry_warnings(folder: Path, now: datetime.datetime | None = None) -> list[str]:
    """Return a line for each certificate in a folder that ends within `WARN_DAYS`, or has ended.

    Raises:
        InputError: one is no certificate.
    """
    now = now or datetime.datetime.now(datetime.UTC)
    found = []
    for name, renewal in (
        ("server.crt", "`airtune deploy keys server --renew`, then start the server again"),
        ("ca.crt", "a new authority: every device needs the new ca.crt"),
    ):
        path = folder / name
        if not path.is_file():
            continue
        certificate = _certificate(path)
        left = certificate.not_valid_after_utc - now
        if left < datetime.timedelta(days=WARN_DAYS):
            when = "has ended" if left < datetime.timedelta(0) else f"ends in {left.days} days"
            found.append(f"warning: the certificate '{path}' {when}; renew it: {renewal}")
    return found


def public_pem(public_key_file: Path) -> bytes:
    """Return a registered key file as PEM, the form in which requests carry it.

    Raises:
        InputError: the file is missing or holds no elliptic-curve public key.
    """
    try:
        key = serialization.load_ssh_public_key(public_key_file.read_bytes())
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        reason = error.strerror if isinstance(error, OSError) else "not an OpenSSH public key"
        raise InputError(f"cannot read device key '{public_key_file}': {reason}") from None
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise InputError(f"device key '{public_key_file}': not an elliptic-curve key")
    return key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def _authority(
    folder: Path, *, may_make: bool
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    certificate_file, key_file = folder / "ca.crt", folder / "ca.key"
    here = [file for file in (certificate_file, key_file) if file.exists()]
    if len(here) == 2:
        key = _private_key(key_file)
        certificate = _certificate(certificate_file)
        if certificate.public_key() != key.public_key():
            raise InputError(f"'{key_file}' is not the key of '{certificate_file}'")
        return certificate, key
    if here:
        missing = key_file if here == [certificate_file] else certificate_file
        raise InputError(
            f"'{missing}' is missing, and '{here[0]}' is there: put it back for as long as this "
            "command runs, which signs with both"
        )
    if not may_make:
        raise InputError(
            f"--renew: '{folder}' has no authority, and devices trust no other than theirs; give "
            "its folder to --dir, or leave --renew out to make a new one"
        )
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name("airtune deployment authority")
    certificate = (
        _builder(name, name, key, 3650)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_signing_only(), critical=True)
        .sign(key, hashes.SHA256())
    )
    with _explained():
        _write_private(key_file, _pem(key))
        certificate_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return certificate, key


def _private_key(path: Path) -> ec.EllipticCurvePrivateKey:
    key = _any_key(path)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise InputError(f"'{path}' is not an elliptic-curve key")
    return key


def _any_key(path: Path) -> PrivateKeyTypes:
    try:
        return serialization.load_pem_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise InputError(f"cannot read '{path}': {error.strerror}") from None
    except (ValueError, TypeError, UnsupportedAlgorithm):  # TypeError: it has a passphrase
        raise InputError(f"'{path}' is not a private key in PEM without a passphrase") from None


def _certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except OSError as error:
        raise InputError(f"cannot read '{path}': {error.strerror}") from None
    except ValueError:
        raise InputError(f"'{path}' is not a certificate in PEM") from None


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))  # devices' clocks may lag
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _signing_only() -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(address: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(address))
    except ValueError:
        if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?", address):
            raise InputError(
                f"--address '{address}': neither a host name nor an IP address (no port, no URL)"
            ) from None
        return x509.DNSName(address)


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name[:64])])


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _write_private(path: Path, content: bytes) -> None:
    # Created closed to others: a chmod afterwards would leave a moment in which it is open.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot write '{error.filename}': {error.strerror}") from None


def _write_pair(private: tuple[Path, bytes], public: tuple[Path, bytes], *, renew: bool) -> None:
    """Write both files; an old pair moves aside only once the new one is on the disk."""
    files = (private[0], public[0])
    # No device's key has such a name: those begin with a letter or a digit.
    written = [file.with_name(f".{file.name}.new") for file in files]
    with _explained():
        for file in written:
            file.unlink(missing_ok=True)  # from a command that was killed
        _write_private(written[0], private[1])
        written[1].write_bytes(public[1])
        if renew:
            _move_aside(*files)
        _refuse_existing(*files)
        for new, file in zip(written, files, strict=True):
            new.replace(file)


def _move_aside(*files: Path) -> None:
    for file in files:
        if file.exists():
            file.replace(file.with_name(file.name + ".old"))


def _refuse_existing(*files: Path) -> None:
    for file in files:
        if file.exists():
            raise InputError(f"'{file}' exists: move it away first, keys are never overwritten")

"""An S3 server whose certificate is of a private authority: one setting, AWS_CA_BUNDLE, for all that talks to it."""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from infra.store.opening import open_store
from validation.errors import SettingsError, StoreUnreachable

pytestmark = [pytest.mark.server, pytest.mark.usefixtures("fake_aws")]

BUNDLES = ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR")


@pytest.fixture(autouse=True)
def no_bundle(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in BUNDLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the authority's certificate (ca.pem), and a server's with its key."""
    folder = tmp_path_factory.mktemp("authority")
    ours, servers = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    (folder / "ca.pem").write_bytes(_certificate(ours, ours, None))
    (folder / "server.pem").write_bytes(_certificate(servers, ours, ipaddress.IPv4Address("127.0.0.1")))
    private = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "key.pem").write_bytes(servers.private_bytes(*private))
    return folder


def _certificate(
    key: ec.EllipticCurvePrivateKey, signer: ec.EllipticCurvePrivateKey, address: ipaddress.IPv4Address | None
) -> bytes:
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a hospital's authority")])
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, str(address))]) if address else issuer
    now, day = datetime.datetime.now(datetime.UTC), datetime.timedelta(days=1)
    made = (
        x509.CertificateBuilder(issuer, subject, key.public_key(), x509.random_serial_number(), now - day, now + day)
        .add_extension(x509.BasicConstraints(ca=address is None, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    if address:
        made = made.add_extension(x509.SubjectAlternativeName([x509.IPAddress(address)]), critical=False)
    return made.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


@pytest.fixture(scope="module")
def endpoint(authority: Path) -> Iterator[str]:
    """A real S3 server behind TLS, on a free loopback port, with a bucket."""
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        def log(self, *_: object) -> None:
            """Say nothing."""

    certificate = (str(authority / "server.pem"), str(authority / "key.pem"))
    app = DomainDispatcherApplication(create_backend_app)
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=Quiet, ssl_context=certificate)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"https://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("by", ["AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "the profile"])
def test_one_setting_serves_listing_and_moving_bytes(
    by: str, endpoint: str, authority: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if by == "the profile":
        (tmp_path / "config").write_text(f"[default]\nca_bundle = {authority / 'ca.pem'}\n")
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    else:
        monkeypatch.setenv(by, str(authority / "ca.pem"))
    store = open_store("s3://cells", endpoint=endpoint)
    store._client.create_bucket(Bucket="cells")  # type: ignore[attr-defined]
    store.check()
    store.put("retraining/a", b"x")
    assert store.get("retraining/a") == b"x"
    assert store.exists("retraining/a")


def test_without_it_both_name_it(endpoint: str) -> None:
    store = open_store("s3://cells", endpoint=endpoint)
    for call in (store.check, lambda: store.put("retraining/a", b"x")):
        with pytest.raises(StoreUnreachable, match="certificate") as caught:
            call()
        assert "AWS_CA_BUNDLE" in caught.value.hint


@pytest.mark.parametrize("text", [None, "no certificate"])
def test_a_bundle_that_is_none_is_named(
    text: str | None, endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if text is not None:
        (tmp_path / "ca.pem").write_text(text)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "ca.pem"))
    with pytest.raises(SettingsError, match=r"ca\.pem"):
        open_store("s3://cells", endpoint=endpoint)

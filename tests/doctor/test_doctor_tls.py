"""The doctor and a real TLS server: each certificate gets its own sentence, and nothing is sent first."""

from __future__ import annotations

import datetime
import ssl
from pathlib import Path

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from doctor_servers import ServeTls

from notebooks_service.doctor.examine import Asked, Examination, examine
from scripted_gitlab import ScriptedGitLab

TOKEN = "glpat-canary-of-tls"
NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)


async def about_tls(forge: ScriptedGitLab, url: str | None = None) -> list[str]:
    done: Examination = await examine(Asked(forge=url or forge.url, token=TOKEN), areas=["forge"])
    assert TOKEN not in str(done.findings)
    return [one.code for one in done.findings if one.code.startswith("tls.")]


async def test_trusted(serve_tls: ServeTls, ca_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTEBOOKS_FORGE_CA_FILE", str(ca_file))
    forge = serve_tls()
    forge.json("GET /api/v4/metadata", {"version": "17.8.0"})
    assert await about_tls(forge) == ["tls.trusted"]
    assert forge.asked[0].headers["Authorization"] == f"Bearer {TOKEN}"


async def test_expires_soon(
    serve_tls: ServeTls, ca_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTEBOOKS_FORGE_CA_FILE", str(ca_file))
    forge = serve_tls(ends=NOW + 10 * DAY)
    assert await about_tls(forge) == ["tls.expires-soon"]


async def test_expired(serve_tls: ServeTls, ca_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTEBOOKS_FORGE_CA_FILE", str(ca_file))
    forge = serve_tls(begins=NOW - 20 * DAY, ends=NOW - DAY)
    assert await about_tls(forge) == ["tls.expired"]
    assert forge.asked == []


async def test_not_yet(serve_tls: ServeTls, ca_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTEBOOKS_FORGE_CA_FILE", str(ca_file))
    forge = serve_tls(begins=NOW + DAY, ends=NOW + 20 * DAY)
    assert await about_tls(forge) == ["tls.not-yet"]


async def test_other_host(
    serve_tls: ServeTls, ca_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTEBOOKS_FORGE_CA_FILE", str(ca_file))
    by_address = serve_tls("gitlab.example.org")
    assert await about_tls(by_address) == ["tls.other-host"]
    by_name = serve_tls("gitlab.example.org")
    url = by_name.url.replace("127.0.0.1", "localhost")
    assert await about_tls(by_name, url) == ["tls.other-host"]
    assert by_address.asked == by_name.asked == []


async def test_unknown_authority(serve_tls: ServeTls) -> None:
    forge = serve_tls()
    assert await about_tls(forge) == ["tls.unknown-authority"]
    assert forge.asked == []


async def test_authority_that_the_machine_knows(
    serve_tls: ServeTls, ca_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a private authority in the system's list, which Python's libraries do not read."""
    monkeypatch.setenv("SSL_CERT_FILE", str(ca_file))
    assert await about_tls(serve_tls()) == ["tls.system-authority"]


async def test_other_authority(
    serve_tls: ServeTls, ca_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTEBOOKS_FORGE_CA_FILE", str(ca_file))
    assert await about_tls(serve_tls(by=trustme.CA())) == ["tls.other-authority"]


async def test_self_signed(serve_tls: ServeTls, tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "alone")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW - DAY)
        .not_valid_after(NOW + DAY)
        .sign(key, hashes.SHA256())
    )
    file = tmp_path / "alone.pem"
    file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    assert await about_tls(serve_tls(context=context)) == ["tls.self-signed"]


async def test_no_tls_at_all(gitlab: ScriptedGitLab) -> None:
    assert await about_tls(gitlab, gitlab.url.replace("http:", "https:")) == ["tls.fails"]


@pytest.mark.parametrize("content", [None, "", "no certificate", "-----BEGIN CERTIFICATE-----\n"])
async def test_ca_file_that_is_none(
    serve_tls: ServeTls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None
) -> None:
    file = tmp_path / "ca.pem"
    if content is not None:
        file.write_text(content)
    monkeypatch.setenv("NOTEBOOKS_FORGE_CA_FILE", str(file))
    forge = serve_tls()
    assert await about_tls(forge) == ["tls.ca-file"]
    assert forge.asked == []


async def test_the_registry_is_asked_with_the_same_authority(
    serve_tls: ServeTls, ca_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And without any credential: its tokens come from the forge."""
    monkeypatch.setenv("NOTEBOOKS_FORGE_CA_FILE", str(ca_file))
    forge, registry = serve_tls(), serve_tls()
    host = registry.url.removeprefix("https://")
    forge.json("GET /api/v4/metadata", {"version": "17.8.0"})
    project = {
        "id": 1,
        "path_with_namespace": "G/p",
        "container_registry_image_prefix": f"{host}/g/p",
    }
    forge.json("GET /api/v4/projects/G%2Fp", project)
    forge.json("GET /jwt/auth", {"token": "registry-token-canary"})
    realm = f'Bearer realm="{forge.url}/jwt/auth",service="container_registry"'
    registry.raw("GET /v2/", 401, b"{}", WWW_Authenticate=realm)
    done = await examine(Asked(forge=forge.url, project="G/p", token=TOKEN), areas=["forge"])
    found = [one.code for one in done.findings if one.code.startswith("registry.")]
    assert found == ["registry.realm", "registry.token"]
    assert "registry-token-canary" not in str(done.findings)
    assert all("Authorization" not in one.headers for one in registry.asked)
    (asked,) = [one for one in forge.asked if one.path == "/jwt/auth"]
    assert asked.query == "service=container_registry&scope=repository%3Ag%2Fp%3Apull"
    assert asked.headers["Authorization"].startswith("Basic ")

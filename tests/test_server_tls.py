"""TLS of both ports by settings, with a certificate made by the test."""

from __future__ import annotations

import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path

import grpc
import httpx
import pytest
from programs import program, self_signed
from serving import ROOT, free_port, serving_fake
from tritonclient.grpc import service_pb2, service_pb2_grpc
from waiting import PATIENCE_S

from florence.errors import SettingsError
from florence.server.tls import Tls, tls_of
from florence.settings import Settings


def test_none_or_both_files_are_named(tmp_path: Path) -> None:
    """Certificate and key are set together; one alone is refused with both names."""
    assert tls_of(None, None) is None
    for files in ((tmp_path / "a", None), (None, tmp_path / "a")):
        with pytest.raises(SettingsError, match="both FLORENCE_TLS_CERTIFICATE and FLORENCE_TLS_KEY"):
            tls_of(*files)


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    """Missing and invalid files are refused by the setting's name before a port is opened."""
    rubbish = tmp_path / "rubbish"
    rubbish.write_text("no certificate")
    for path in (rubbish, tmp_path / "missing"):
        settings = Settings(tls_certificate=path, tls_key=path)
        with pytest.raises(SettingsError, match=r"FLORENCE_TLS_CERTIFICATE .* can't be used"):
            tls_of(settings.tls_certificate, settings.tls_key)


@pytest.mark.system
def test_a_key_is_the_certificates_and_has_no_passphrase(tmp_path: Path) -> None:
    """Another certificate's key, and one with a passphrase, are refused."""
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    certificate, key = self_signed(tmp_path / "one")
    _, other = self_signed(tmp_path / "two")
    assert tls_of(certificate, key) is not None
    locked = tmp_path / "locked"
    openssl = program("openssl", "openssl", "OPENSSL_PROGRAM")
    command = [openssl, "rsa", "-in", key, "-aes256", "-passout", "pass:secret", "-out", locked]
    subprocess.run(command, check=True, capture_output=True)
    for wrong, reason in ((other, "can't be used"), (locked, "passphrase")):
        with pytest.raises(SettingsError, match=reason):
            tls_of(certificate, wrong)


def test_ciphers_of_http_are_those_of_today(tmp_path: Path) -> None:
    """Each cipher is authenticated (AEAD), and Python's default TLS 1.2 client supports one of them."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_ciphers(Tls(tmp_path, tmp_path).for_bentoml()["ciphers"])
    offered = {each["name"]: each for each in context.get_ciphers()}
    assert all(each["aead"] for each in offered.values())
    taken = ssl.create_default_context().get_ciphers()
    assert [each for each in taken if each["protocol"] == "TLSv1.2" and each["name"] in offered]


@pytest.mark.system
@pytest.mark.slow
def test_both_ports_speak_tls_and_nothing_else(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    florence: Callable[..., tuple[int, str, str]],
) -> None:
    """Clients that trust the certificate are answered on both ports, also the command; plain ones are not."""
    certificate, key = self_signed(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    grpc_port = free_port()
    files = {"FLORENCE_TLS_CERTIFICATE": str(certificate), "FLORENCE_TLS_KEY": str(key)}
    with serving_fake(FLORENCE_GRPC_PORT=str(grpc_port), **files) as server:
        plain = server.url
        server.url = plain.replace("http://", "https://")
        server.wait_ready()
        assert httpx.get(server.url + "/v2/health/ready", timeout=PATIENCE_S).json() == {"ready": True}
        with pytest.raises(httpx.HTTPError):
            httpx.get(plain + "/livez", timeout=PATIENCE_S)
        older = ssl.create_default_context(cafile=str(certificate))
        older.maximum_version = ssl.TLSVersion.TLSv1_2
        assert httpx.get(server.url + "/livez", timeout=PATIENCE_S, verify=older).status_code == 200
        distrustful = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        with pytest.raises(httpx.HTTPError):
            httpx.get(server.url + "/livez", timeout=PATIENCE_S, verify=distrustful)
        status, out, _ = florence("run", ROOT / "data" / "scene_02.png", "caption", "--url", server.url)
        assert (status, bool(out)) == (0, True)
        trusted = grpc.ssl_channel_credentials(certificate.read_bytes())
        ready = service_pb2.ServerReadyRequest()
        with grpc.secure_channel(f"localhost:{grpc_port}", trusted) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            assert stub.ServerReady(ready, timeout=PATIENCE_S).ready
        with grpc.insecure_channel(f"localhost:{grpc_port}") as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            with pytest.raises(grpc.RpcError):
                stub.ServerReady(ready, timeout=PATIENCE_S)

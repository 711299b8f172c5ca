"""Settings: read from FLORENCE_* variables, refused by name, one device for each worker."""

from __future__ import annotations

import os

import pytest
from pydantic import ValidationError

from florence.engine.scheduler import TokenLimits
from florence.errors import SettingsError
from florence.images.decode import ImageLimits
from florence.runtime.limits import token_limits
from florence.settings import Settings, read_settings


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("FLORENCE_"):
            monkeypatch.delenv(name)


def test_defaults_are_those_of_the_replaced_deployment_and_of_the_picture_limits() -> None:
    """Without variables the checkpoint is the replaced deployment's, and the limits are the library's own."""
    settings = read_settings()
    assert settings.model == "mrhendrey/Florence-2-large-ft-safetensors"
    limits = ImageLimits()
    assert settings.max_image_bytes == limits.max_bytes
    assert settings.max_image_pixels == limits.max_pixels
    assert settings.max_image_frames == limits.max_frames
    assert token_limits(settings) == TokenLimits()


def test_variables_are_read_by_name_and_empty_ones_count_as_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """FLORENCE_<NAME> sets a field with its type; an empty variable leaves the default."""
    monkeypatch.setenv("FLORENCE_MODEL", "demo")
    monkeypatch.setenv("FLORENCE_TIMEOUT_S", "1.5")
    monkeypatch.setenv("FLORENCE_THREADS", "2")
    monkeypatch.setenv("FLORENCE_REVISION", "")
    monkeypatch.setenv("FLORENCE_MAX_QUEUE", "")
    settings = read_settings()
    assert (settings.model, settings.timeout_s, settings.threads) == ("demo", 1.5, 2)
    assert settings.revision is None
    assert settings.max_queue == 256


def test_settings_are_frozen() -> None:
    """Nobody can change a setting after it was read."""
    settings = read_settings()
    with pytest.raises(ValidationError):
        settings.model = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("FLORENCE_MODLE", "FLORENCE_MODEL"),
        ("FLORENCE_TIMEOUT", "FLORENCE_TIMEOUT_S"),
        ("FLORENCE_MAX_IMAGE_BYTE", "FLORENCE_MAX_IMAGE_BYTES"),
        ("florence_dtyp", "FLORENCE_DTYPE"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest_one(
    monkeypatch: pytest.MonkeyPatch, name: str, meant: str
) -> None:
    """A misspelt variable is an error that says which one was meant."""
    monkeypatch.setenv(name, "1")
    with pytest.raises(SettingsError, match=rf"unknown setting {name}: did you mean {meant}\?"):
        read_settings()


def test_a_name_like_no_other_is_refused_with_all_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no name is near, the message lists them all."""
    monkeypatch.setenv("FLORENCE_ZZZZZZ", "1")
    with pytest.raises(SettingsError) as caught:
        read_settings()
    for field in Settings.model_fields:
        assert f"FLORENCE_{field.upper()}" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("FLORENCE_SERVICE_HOST", "10.0.0.1"),
        ("FLORENCE_SERVICE_PORT", "8000"),
        ("FLORENCE_SERVICE_PORT_HTTP", "8000"),
        ("FLORENCE_PORT", "tcp://10.0.0.1:8000"),
        ("FLORENCE_PORT_8000_TCP", "tcp://10.0.0.1:8000"),
        ("FLORENCE_PORT_8000_TCP_ADDR", "10.0.0.1"),
        ("FLORENCE_CANARY_SERVICE_HOST", "10.0.0.1"),
    ],
)
def test_what_kubernetes_puts_into_a_pod_is_not_a_setting(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    """A Kubernetes Service called `florence` adds variables of that prefix; they don't stop the start."""
    monkeypatch.setenv(name, value)
    assert read_settings() == Settings()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DTYPE", "int4"),
        ("TIMEOUT_S", "0"),
        ("TIMEOUT_S", "nan"),
        ("TIMEOUT_S", "soon"),
        ("MAX_QUEUE", "0"),
        ("MAX_QUEUE", "1.5"),
        ("THREADS", "-1"),
        ("DEVICE", "gpu"),
        ("DEVICE", "cuda:0,,cuda:1"),
        ("DEVICE", "cuda:-1"),
        ("LOG_LEVEL", "loud"),
        ("MAX_IMAGE_PIXELS", "999999999"),
        ("MODEL", "   "),
    ],
)
def test_wrong_values_are_refused_by_the_variables_name(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    """The message names the variable and quotes its value."""
    monkeypatch.setenv(f"FLORENCE_{name}", value)
    with pytest.raises(SettingsError, match=f"FLORENCE_{name}: .*got '{value[:3]}"):
        read_settings()


@pytest.mark.parametrize(
    ("device", "gpus", "devices"),
    [
        ("auto", 0, ["cpu"]),
        ("auto", 2, ["cuda:0", "cuda:1"]),
        ("cuda", 1, ["cuda:0"]),
        ("cpu", 4, ["cpu"]),
        ("CUDA:1", 2, ["cuda:1"]),
        ("cuda:2, cuda:0", 3, ["cuda:2", "cuda:0"]),
        ("cpu,cpu", 0, ["cpu", "cpu"]),
    ],
)
def test_each_worker_has_a_device(device: str, gpus: int, devices: list[str]) -> None:
    """`auto` and `cuda` are all GPUs; a list is taken in its order."""
    assert Settings(device=device).devices(gpus) == devices


@pytest.mark.parametrize(("device", "gpus"), [("cuda", 0), ("cuda:0", 0), ("cuda:1,cuda:2", 2)])
def test_a_device_that_is_not_there_is_refused(device: str, gpus: int) -> None:
    """Better an error at the start than a worker that dies."""
    with pytest.raises(SettingsError, match="FLORENCE_DEVICE"):
        Settings(device=device).devices(gpus)


def test_kubernetes_address_of_a_grpc_service_is_no_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a Service called `florence-grpc` Kubernetes sets FLORENCE_GRPC_PORT itself."""
    monkeypatch.setenv("FLORENCE_GRPC_PORT", "tcp://10.0.0.7:8001")
    assert read_settings().grpc_port == 8001
    monkeypatch.setenv("FLORENCE_GRPC_PORT", "0")
    assert read_settings().grpc_port == 0

"""Settings: read from FLORENCE_* variables, checked by name, with one device for each worker."""

from __future__ import annotations

import math
import re
from dataclasses import asdict

import pytest
from pydantic import SecretStr, ValidationError

from florence.engine.config import EngineConfig
from florence.errors import SettingsError
from florence.images.limits import ImageLimits
from florence.settings import Settings, read_settings

pytestmark = pytest.mark.usefixtures("no_settings")


def test_defaults_are_those_of_the_replaced_deployment_and_of_the_picture_limits() -> None:
    """The default checkpoint is the replaced deployment's, and the default limits are the library's."""
    settings = read_settings()
    assert settings.model == "microsoft/Florence-2-large-ft"
    assert settings.image_limits == ImageLimits()
    assert settings.engine_config("cpu") == EngineConfig()
    assert settings.engine_config("cuda") == EngineConfig.for_device("cuda") != EngineConfig()


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_the_engine_is_configured_as_the_settings_say(kind: str) -> None:
    """Each field of the engine's configuration except `reserved` is a setting, which applies on any
    device."""
    values = {"threads": 3, "max_batch_size": 5, "max_encode_batch": 2, "max_queue": 7, "max_latency_ms": 9.0}
    values |= {
        "cpu_kernels": "off",
        "cuda_kernels": "off",
        "compile_tower": True,
        "encode_stream": "on",
        "encode_budget_ms": 8.0,
        "max_new_tokens": 6,
        "max_prompt_tokens": 4,
        "picture_cache_bytes": 0,
    }
    config = Settings(**values).engine_config(kind, reserved=True)
    assert asdict(config) == {**values, "reserved": True}


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("max_queue", 0, "greater than or equal to 1, got 0"),
        ("max_latency_ms", 0.0, "greater than 0, got 0.0"),
        ("encode_budget_ms", math.nan, "(greater|less) than .*, got nan"),
        ("max_new_tokens", 10**6, "less than or equal to 100000, got 1000000"),
    ],
)
def test_library_and_service_have_the_same_bounds(name: str, value: float, words: str) -> None:
    """`EngineConfig` and the setting refuse the same values, each by its own name."""
    with pytest.raises(SettingsError, match=f"^{name} must be {words}$"):
        EngineConfig.for_device("cpu", **{name: value})
    with pytest.raises(SettingsError, match=f"^FLORENCE_{name.upper()}: {words}$"):
        Settings(**{name: value})


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


def test_settings_without_secrets_are_otherwise_the_same() -> None:
    """A secret never leaves the process with the settings; the other values stay."""
    given = Settings(model="demo", max_queue=7, api_keys=SecretStr("ann:" + 32 * "k"))
    assert "kkkk" not in given.without_secrets().model_dump_json()
    assert given.without_secrets() == Settings(model="demo", max_queue=7, api_keys=None)


def test_settings_are_frozen() -> None:
    """A setting can't be changed after it is read."""
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


def test_values_given_by_keyword_go_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Values given by keyword, as BentoML's arguments are, replace the environment's, and text is
    converted."""
    monkeypatch.setenv("FLORENCE_MAX_QUEUE", "5")
    monkeypatch.setenv("FLORENCE_THREADS", "3")
    settings = read_settings(lambda settings: settings.model_validate({"max_queue": "6"}))
    assert (settings.max_queue, settings.threads) == (6, 3)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("modle", "did you mean model?"),
        ("FLORENCE_MODEL", "did you mean model?"),
        ("max-queue", "did you mean max_queue?"),
        ("zzzz", "the settings are model, revision"),
    ],
)
def test_an_unknown_argument_is_refused_with_the_nearest_one(name: str, hint: str) -> None:
    """An unknown argument gets the error of an unknown variable, with the nearest name."""
    with pytest.raises(SettingsError, match=re.escape(f"unknown setting {name}: {hint}")):
        Settings(**{name: "demo"})


def test_a_name_like_no_other_is_refused_with_all_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """If no name is near, the error lists all names."""
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
    """Variables that Kubernetes sets for a Service called `florence` are not taken as settings."""
    monkeypatch.setenv(name, value)
    assert read_settings() == Settings()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DTYPE", "int4"),
        ("TIMEOUT_S", "0"),
        ("TIMEOUT_S", "nan"),
        ("TIMEOUT_S", "soon"),
        ("CORS_ORIGINS", "a.example"),
        ("CORS_ORIGINS", "https://a.example/page"),
        ("CORS_ORIGINS", "https://*.example"),
        ("CORS_ORIGINS", "https://"),
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
    """The error names the variable and quotes its value."""
    monkeypatch.setenv(f"FLORENCE_{name}", value)
    with pytest.raises(SettingsError, match=f"FLORENCE_{name}: .*got '{value[:3]}"):
        read_settings()


@pytest.mark.parametrize(
    ("name", "wanted"),
    [("MAX_BODY_BYTES", "an integer"), ("TIMEOUT_S", "a number"), ("FAST_JPEG", "true or false")],
)
def test_the_error_for_another_type_says_what_to_write(
    monkeypatch: pytest.MonkeyPatch, name: str, wanted: str
) -> None:
    """The error for a value of another type says what to write."""
    monkeypatch.setenv(f"FLORENCE_{name}", "64MB")
    with pytest.raises(SettingsError, match=f"^FLORENCE_{name}: {wanted}, got '64MB'$"):
        read_settings()


@pytest.mark.parametrize(
    "origins",
    ["*", "null", "http://localhost:9000", "https://a.example, HTTPS://B.example:8443/", "http://[::1]:80"],
)
def test_origins_are_compared_as_browsers_write_them(origins: str) -> None:
    """Origins are lower case, as browsers send them."""
    assert Settings(cors_origins=origins).cors_origins == origins.lower()


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
    """`auto` and `cuda` are all GPUs; a list keeps its order."""
    assert Settings(device=device).devices(gpus) == devices


@pytest.mark.parametrize(("device", "gpus"), [("cuda", 0), ("cuda:0", 0), ("cuda:1,cuda:2", 2)])
def test_a_device_that_is_not_there_is_refused(device: str, gpus: int) -> None:
    """A missing device is an error at start-up, not a worker that fails."""
    with pytest.raises(SettingsError, match="FLORENCE_DEVICE"):
        Settings(device=device).devices(gpus)


def test_kubernetes_address_of_a_grpc_service_is_no_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """FLORENCE_GRPC_PORT is not a setting when Kubernetes sets it for a Service called `florence-grpc`."""
    monkeypatch.setenv("FLORENCE_GRPC_PORT", "tcp://10.0.0.7:8001")
    assert read_settings().grpc_port == 8001
    monkeypatch.setenv("FLORENCE_GRPC_PORT", "0")
    assert read_settings().grpc_port == 0

"""Settings as BentoML's arguments (`bentoml serve --arg device=cpu`), which go before the environment.
`test_bento.py` tests the arguments of a build."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from bentoml._internal.utils.args import set_arguments  # `bentoml serve` calls it; nothing public does
from serving import ROOT, serving

from florence.server.service import service_of_environment
from florence.settings import Settings


@pytest.fixture(autouse=True)
def _no_arguments_afterwards() -> Iterator[None]:
    """Remove the arguments after each test."""
    yield
    set_arguments({})
    service_of_environment.cache_clear()


def settings_of(arguments: dict[str, Any]) -> Settings:
    """The settings of the service that these arguments make."""
    set_arguments(arguments)
    service_of_environment.cache_clear()
    settings: Settings = service_of_environment().inner.settings
    return settings


def test_arguments_go_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """An argument is converted to its setting's type and replaces the environment's value; other settings
    stay the environment's."""
    monkeypatch.setenv("FLORENCE_MODEL", "owner/other")
    monkeypatch.setenv("FLORENCE_MAX_QUEUE", "9")
    monkeypatch.setenv("FLORENCE_THREADS", "3")
    settings = settings_of({"model": "demo", "device": "cpu,cpu", "max_queue": "7"})
    assert (settings.model, settings.max_queue, settings.threads) == ("demo", 7, 3)
    assert settings.devices(0) == ["cpu", "cpu"]


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_is_an_argument(name: str) -> None:
    """Each setting is an argument, and its default is accepted."""
    default = Settings.model_fields[name].default
    assert getattr(settings_of({name: default}), name) == default


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"modle": "demo"}, "florence: unknown setting modle: did you mean model?"),
        ({"device": "gpu"}, "florence: FLORENCE_DEVICE: must be auto, cpu, .* got 'gpu'"),
        ({"max_queue": "many"}, "florence: FLORENCE_MAX_QUEUE: .*integer.*, got 'many'"),
    ],
)
def test_wrong_arguments_end_the_start_with_one_line(arguments: dict[str, str], message: str) -> None:
    """A wrong argument ends the start with one line, like a wrong variable."""
    with pytest.raises(SystemExit, match=message.replace("?", r"\?")):
        settings_of(arguments)


@pytest.mark.slow
def test_workers_get_the_arguments_of_bentoml_serve() -> None:
    """Workers load the argument's model, not the environment's."""
    arguments = ["model=demo", "device=cpu", "max_queue=7"]
    environment = {"FLORENCE_MODEL": "/nowhere", "FLORENCE_MAX_QUEUE": "9"}
    with serving(".", ROOT, arguments, **environment) as server:
        server.wait_ready()
        info = httpx.get(f"{server.url}/info", timeout=60).json()
    assert (info["checkpoint"], info["limits"]["max_queue"]) == ("demo", 7)

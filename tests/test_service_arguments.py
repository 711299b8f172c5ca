"""Settings as BentoML's arguments: `bentoml serve --arg device=cpu`, before the environment. A build's are in
`test_bento.py`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from bentoml._internal.utils.args import set_arguments
from serving import ROOT, serving

from florence.server.service import service_of_environment
from florence.settings import Settings


@pytest.fixture(autouse=True)
def _no_arguments_afterwards() -> Iterator[None]:
    yield
    set_arguments({})
    service_of_environment.cache_clear()


def settings_of(arguments: dict[str, Any]) -> Settings:
    """Those of the service that these arguments make."""
    set_arguments(arguments)
    service_of_environment.cache_clear()
    settings: Settings = service_of_environment().inner.settings
    return settings


def test_arguments_go_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A text becomes its setting's type; what no argument names is still the environment's."""
    monkeypatch.setenv("FLORENCE_MODEL", "owner/other")
    monkeypatch.setenv("FLORENCE_MAX_QUEUE", "9")
    monkeypatch.setenv("FLORENCE_THREADS", "3")
    settings = settings_of({"model": "demo", "device": "cpu,cpu", "max_queue": "7"})
    assert (settings.model, settings.max_queue, settings.threads) == ("demo", 7, 3)
    assert settings.devices(0) == ["cpu", "cpu"]


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_is_an_argument(name: str) -> None:
    """There is no second list: the default, given by its name, is taken."""
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
    """As wrong variables do."""
    with pytest.raises(SystemExit, match=message.replace("?", r"\?")):
        settings_of(arguments)


@pytest.mark.slow
def test_workers_get_the_arguments_of_bentoml_serve() -> None:
    """They load what the argument names, not what the environment does."""
    arguments = ["model=demo", "device=cpu", "max_queue=7"]
    environment = {"FLORENCE_MODEL": "/nowhere", "FLORENCE_MAX_QUEUE": "9"}
    with serving(".", ROOT, arguments, **environment) as server:
        server.wait_ready()
        info = httpx.get(f"{server.url}/info", timeout=60).json()
    assert (info["checkpoint"], info["limits"]["max_queue"]) == ("demo", 7)

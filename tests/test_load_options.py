"""The options that a model is loaded with: keywords, settings and `LoadOptions` agree."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from florence import Florence2
from florence.engine.config import EngineConfig
from florence.engine.observer import Observer
from florence.errors import SettingsError
from florence.images.limits import DEFAULT_LIMITS
from florence.runtime.configured import keywords_of
from florence.runtime.load_options import LoadKeywords, LoadOptions
from florence.settings import Settings

pytestmark = pytest.mark.usefixtures("no_settings")
OPTIONS = {each.name for each in fields(LoadOptions)}
OF_SETTINGS = OPTIONS & Settings.model_fields.keys()
VALUES: Mapping[str, Any] = {
    "revision": "main",
    "base": "demo",
    "adapter": "owner/one",
    "adapters": "a=owner/a",
    "max_adapters": 3,
    "max_adapter_rank": 5,
    "input_size": 64,
    "device": "cpu",
    "dtype": "bfloat16",
    "threads": 3,
    "readers": 7,
    "fast_jpeg": True,
    "pictures": "original",
    "tasks": "vqa",
    "score_temperature": 2.5,
    "max_tiles": 9,
}


def test_keywords_have_the_options_names_and_types() -> None:
    """A keyword may also be None where its option is not, which then has its default."""
    declared, keywords = get_type_hints(LoadOptions), get_type_hints(LoadKeywords)
    assert list(keywords) == [each.name for each in fields(LoadOptions)]
    assert all(keywords[name] in (declared[name], declared[name] | None) for name in keywords)


def test_a_setting_has_its_options_default() -> None:
    """Both defaults are equal, except that of `readers`: a service's depends on the device, the library has
    none."""
    settings, options = Settings(), LoadOptions()
    differ = {name for name in OF_SETTINGS if getattr(settings, name) != getattr(options, name)}
    assert differ == {"readers"}
    assert settings.image_limits == options.limits == DEFAULT_LIMITS
    assert settings.engine_config("cpu") == LoadOptions(device="cpu").engine_config


def test_a_setting_reaches_the_option_of_its_name() -> None:
    """Each setting is changed from its default. `readers` counts in a service only, and is 0 elsewhere."""
    assert VALUES.keys() == OF_SETTINGS
    settings = Settings(**VALUES, key_queue_share=0.25, max_queue=40, max_image_side=99)
    alone, served = (LoadOptions(**keywords_of(settings, "cpu", workers, 72)) for workers in (0, 1))
    expected = {**VALUES, "adapters": {"a": "owner/a"}}
    assert {name: getattr(served, name) for name in OF_SETTINGS} == expected
    assert {name: getattr(alone, name) for name in OF_SETTINGS} == {**expected, "readers": 0}
    assert (served.owner_share, served.owner_limit) == (0.25, 10)
    assert (alone.limits.max_side, alone.limits.pdf_dpi, served.limits.pdf_dpi) == (99, 72, 0)
    assert served.engine_config == settings.engine_config("cpu", reserved=True)


@pytest.mark.parametrize(
    ("share", "queue", "tiles", "limits"),
    [(1.0, 256, 128, (256, 128)), (0.5, 20, 128, (10, 10)), (0.01, 20, 5, (1, 1)), (0.5, 20, 0, (10, 1))],
)
def test_a_picture_has_no_more_tiles_than_its_owner_has_room(
    share: float, queue: int, tiles: int, limits: tuple[int, int]
) -> None:
    """Both limits are at least 1, so that each owner can have a request."""
    config = EngineConfig(max_queue=queue)
    options = LoadOptions(config=config, owner_share=share, max_tiles=tiles)
    assert (options.owner_limit, options.tile_limit) == limits


def test_threads_override_the_configuration() -> None:
    """`threads` changes nothing else; without it the configuration is the given one."""
    config = EngineConfig(threads=5, max_batch_size=3)
    assert LoadOptions(config=config).engine_config is config
    assert LoadOptions(config=config, threads=2).engine_config == EngineConfig(threads=2, max_batch_size=3)
    with pytest.raises(SettingsError, match="device 'tpu' is not known"):
        _ = LoadOptions(device="tpu").engine_config


def test_an_option_of_none_has_its_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller may pass on a None of its own. An unknown keyword is a `TypeError`."""
    taken = list[LoadOptions]()

    def load(name: str, options: LoadOptions) -> None:
        taken.append(options)
        raise LookupError(name)

    monkeypatch.setattr("florence.runtime.florence2.load", load)
    with pytest.raises(LookupError, match=r"^demo$"):
        Florence2.load("demo", limits=None, config=None, observer=None, threads=None, tasks=None, max_tiles=7)
    (options,) = taken
    assert (options.limits, options.config, options.max_tiles) == (DEFAULT_LIMITS, None, 7)
    assert isinstance(options.observer, Observer)
    with pytest.raises(TypeError, match="unexpected keyword argument 'max_tile'"):
        Florence2.load("demo", max_tile=7)  # type: ignore[call-arg]


def test_the_reference_describes_each_option() -> None:
    """The page of the API has the class, and each field has a docstring, which the page then shows."""
    root = Path(__file__).resolve().parents[1]
    assert "::: florence.runtime.load_options.LoadOptions" in (root / "docs" / "api.md").read_text()
    source = (root / "florence" / "runtime" / "load_options.py").read_text()
    described = re.findall(r'^    (\w+): .+\n    """[A-Z]', source, re.MULTILINE)
    assert set(described) == OPTIONS

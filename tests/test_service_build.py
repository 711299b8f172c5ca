"""The service that `build_service` makes of the settings: workers, GPUs, paths, and BentoML's documents."""

from __future__ import annotations

import pytest
from fake_model import FakeModel

from florence.server import service
from florence.server.loading import count_visible
from florence.settings import Settings
from florence.types.tasks import TASKS


def test_bentomls_own_documents_can_be_made() -> None:
    """`bentoml build` can write both documents; the second shows its clients that the picture is a file."""
    built = service.build_service(Settings(), 0, lambda _settings, _device, _observer: FakeModel())
    assert set(built.apis) == {"analyze", "prompt", *(task.name for task in TASKS.values())}
    paths = built.openapi_spec.asdict()["paths"]
    routes = {route["name"]: route for route in built.schema()["routes"]}
    for task in TASKS.values():
        assert f"/{task.name}" in paths
        properties = routes[task.name]["input"]["properties"]
        assert properties["image"]["type"] == "file"
        assert next(iter(properties)) == "image"


@pytest.mark.parametrize(
    ("device", "gpus", "workers", "resources"),
    [
        ("auto", 0, 1, {}),
        ("auto", 2, 2, {"gpu": 2}),
        ("cuda:1", 4, 1, {"gpu": 2}),
        ("cpu", 4, 1, {}),
    ],
)
def test_workers_and_gpus_follow_the_devices(
    device: str, gpus: int, workers: int, resources: dict[str, int]
) -> None:
    """There is one worker for each device, and as many GPUs as the highest index needs."""
    built = service.build_service(
        Settings(device=device), gpus, lambda _settings, _device, _observer: FakeModel()
    )
    assert built.config["workers"] == workers
    assert built.config["resources"] == resources
    assert built.config["http"] == {"port": 8000}
    assert built.name == "florence2"


@pytest.mark.parametrize(
    ("visible", "there", "count"),
    [
        (None, 2, 2), (None, 0, 0), ("0", 0, 0), ("", 2, 0), ("-1", 2, 0), ("1", 2, 1), ("1, 0", 2, 2),
        ("0,-1,1", 2, 1), ("0,2,1", 2, 1), ("0,none", 2, 1), ("GPU-8932f937,GPU-5ed1e8e1", 4, 2),
        ("MIG-1,MIG-2,MIG-3", 1, 3),
    ],
)  # fmt: skip
def test_gpus_are_counted_as_cuda_shows_them(visible: str | None, there: int, count: int) -> None:
    """CUDA_VISIBLE_DEVICES selects among the present GPUs, and ends at the first invalid number."""
    assert count_visible(visible, there) == count


@pytest.mark.parametrize(
    ("asked", "packed"), [({}, 0), ({"model": "demo"}, 1), ({"revision": "main"}, 1), ({"device": "cpu"}, 0)]
)
def test_a_build_packs_weights_only_where_they_are_named(asked: dict[str, str], packed: int) -> None:
    """A build packs the weights of a named checkpoint or revision only."""
    built = service.build_service(Settings(**asked), 0, lambda _settings, _device, _observer: FakeModel())
    assert len(built.models) == packed

"""The BentoML service: loads the model, puts endpoints and routes together, starts and stops.

Knows BentoML and the settings; nothing about HTTP bodies (`typed`, `v2`) or models (`florence.Florence2`).
One worker process holds one model on one device.
"""

from __future__ import annotations

import functools
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import bentoml
from bentoml._internal.server.http import traffic
from starlette.applications import Starlette
from starlette.routing import Route

from florence.bento.image import image_settings
from florence.bento.weights import CheckpointModel, packed_settings
from florence.engine.observer import Observer
from florence.errors import FlorenceError, is_foreseen, words_of
from florence.server.fetching.fetcher import PictureFetcher, fetcher_of
from florence.server.garbage import collect_rarely, collect_while_cheap, set_aside
from florence.server.http.bodies import BodyBudget
from florence.server.http.connections import bound_connections
from florence.server.http.middleware import TimeLimit
from florence.server.http.paths import HEALTH, OPEN_PATHS
from florence.server.http.routing import known_paths, middleware_of
from florence.server.keys import ApiKeys, keys_of
from florence.server.loading import count_gpus, fetch_checkpoint, load_model
from florence.server.log import logger
from florence.server.observability.access_log import guard_log
from florence.server.observability.gpu_metrics import gpu_metrics
from florence.server.observability.http_metrics import CountRequests, metrics_endpoint
from florence.server.observability.json_log import log_json
from florence.server.observability.metric_files import reserve_files
from florence.server.observability.metrics import engine_metrics
from florence.server.observability.tracing import read_any_header
from florence.server.openai.app import create_chat_app
from florence.server.pages.site import Site
from florence.server.supervisor import (
    a_sibling_serves,
    end_serving,
    end_with_supervisor,
    http_host,
    is_worker,
    leave,
    mark_loaded,
    prepare_supervisor,
    share_one_heap,
)
from florence.server.tls import Tls, tls_of
from florence.server.typed.analysis import analyze_endpoint
from florence.server.typed.endpoints import endpoint, prompt_endpoint
from florence.server.typed.openapi import about_routes
from florence.server.typed.task_paths import task_route
from florence.server.v2.http_app import infer_paths
from florence.server.v2.inference import Inference, ModelRepository
from florence.settings import Settings, read_settings
from florence.types.tasks import TASKS

if TYPE_CHECKING:
    from florence.runtime.florence2 import Florence2
    from florence.server.v2.grpc_server import GrpcServer


Load = Callable[[Settings, str, Observer], "Florence2"]
Fetch = Callable[[Settings], None]
UNLOGGED = (*HEALTH, "/metrics")  # they would fill the access log
ALL_ADDRESSES = "0.0.0.0"
SWITCH_S = 0.001  # a fifth of Python's: the event loop gets the lock sooner from threads that compute
GRACE_S = 10.0  # added to BentoML's time limit: ours comes first, and its message says more


class TaskService:
    """Florence-2: captions, detection, grounding, segmentation and OCR. Paths are the tasks' names."""

    # Set by `build_service`: BentoML makes the instance without arguments.
    settings: Settings
    devices: Sequence[str]
    inference: Inference
    budget: BodyBudget  # of bodies over HTTP and gRPC together
    keys: ApiKeys | None
    tls: Tls | None
    fetcher: PictureFetcher
    load: Load

    def __init__(self) -> None:
        logging.getLogger("florence").setLevel(self.settings.log_level.upper())
        guard_log()
        read_any_header()
        sys.setswitchinterval(SWITCH_S)
        end_with_supervisor()
        self.started = time.monotonic()
        self.grpc: GrpcServer | None = None
        if not is_worker():
            self._load()
            return
        with self._or_end():
            reserve_files()
        if a_sibling_serves():  # it takes the requests meanwhile: this one does not accept any yet
            self._load_or_end()
            return
        # In a thread, so that this worker answers probes meanwhile.
        threading.Thread(target=self._load_or_end, name="florence-load", daemon=True).start()

    @property
    def model(self) -> Florence2:
        """The model. Raises Closed, a 503, while it is being loaded and after it was closed."""
        return self.inference.ready_model()

    def _load(self) -> None:
        worker = bentoml.server_context.worker_index or 1  # BentoML counts from 1; None: there are no workers
        device = self.devices[(worker - 1) % len(self.devices)]
        logger.info("loading %s on %s", self.settings.model, device)
        metrics = engine_metrics()
        model = self.load(self.settings, device, metrics)
        metrics.ready(model.info(), model.memory, time.monotonic() - self.started)
        self.inference.model = model
        mark_loaded()
        if is_worker():
            set_aside()
            collect_while_cheap()
        logger.info("ready: %s on %s", self.settings.model, device)

    def _load_or_end(self) -> None:
        with self._or_end():
            self._load()

    @contextmanager
    def _or_end(self) -> Iterator[None]:
        """A context that ends the service, and logs why, where this worker can't start."""
        try:
            yield
        except Exception as error:
            foreseen, told = is_foreseen(error), words_of(error)
            logger.error("can't serve %s: %s", self.settings.model, told, exc_info=not foreseen)
            end_serving()

    @bentoml.on_startup  # type: ignore[untyped-decorator]  # BentoML's types are not exported
    async def open_grpc(self) -> None:
        """The v2 protocol on a port of its own, on this process's event loop."""
        if self.settings.grpc_port == 0:
            return
        from florence.server.v2.grpc_server import GrpcServer

        host, port = self.settings.grpc_host or http_host() or ALL_ADDRESSES, self.settings.grpc_port
        models = ModelRepository([self.inference])
        server = GrpcServer(
            models,
            self.settings.max_body_bytes,
            self.keys,
            shared=len(self.devices) > 1,
            budget=self.budget,
            tls=self.tls,
        )
        try:
            await server.start(host, port)
        except FlorenceError as error:
            logger.error("%s", error)
            end_serving()
            raise
        self.grpc = server
        logger.info("gRPC on %s:%d, HTTP on %s", host, port, http_host() or "what BentoML says")

    async def __is_ready__(self) -> bool:
        return self.inference.ready

    async def __is_alive__(self) -> bool:
        return self.inference.model is None or self.inference.model.alive

    @bentoml.on_shutdown  # type: ignore[untyped-decorator]  # as above
    async def close(self) -> None:
        """Stop gRPC and the model; each gets the service's time limit to finish. All HTTP requests have been
        answered before: the server waits for them."""
        if self.grpc is not None:
            await self.grpc.stop(self.settings.timeout_s)
        model, self.inference.model = self.inference.model, None
        if model is not None:
            model.close(drain_s=self.settings.timeout_s)
        elif is_worker():
            leave(0)  # it is being loaded, in a thread that can't be stopped

    analyze = analyze_endpoint()
    prompt = prompt_endpoint()


def build_service(
    settings: Settings,
    gpus: int,
    load: Load = load_model,
    fetch: Fetch = fetch_checkpoint,
    fetcher: PictureFetcher | None = None,
) -> Any:
    """The service for these settings, on a machine with `gpus` GPUs.

    `fetch` runs once, before the workers start; `load` makes a worker's model. `fetcher`: fetches pictures
    that are given as URLs; None: one as the settings say.
    """
    if settings.log_format == "json":
        log_json()  # before BentoML logs which configuration it applies
    devices = settings.devices(gpus)
    if is_worker():
        share_one_heap()
        collect_rarely()
        bound_connections(settings.head_timeout_s, settings.body_timeout_s, settings.max_connections)
        traffic.TimeoutMiddleware = TimeLimit  # type: ignore[misc,assignment]  # see there
    inference = Inference(
        settings.timeout_s, any_prompt=settings.prompts == "any", pictures=settings.v2_pictures
    )
    fetcher = fetcher or fetcher_of(settings)
    budget = BodyBudget(settings.body_budget_bytes, settings.body_timeout_s)
    inline = settings.api_keys.get_secret_value() if settings.api_keys else None
    keys = keys_of(inline, settings.api_keys_file)
    tls = tls_of(settings.tls_certificate, settings.tls_key)
    members = {
        **{task.name: endpoint(task) for task in TASKS.values()},
        "settings": settings,
        "devices": devices,
        "inference": inference,
        "budget": budget,
        "keys": keys,
        "tls": tls,
        "fetcher": fetcher,
        "load": staticmethod(load),
        "before_workers": bentoml.on_deployment(functools.partial(_before_workers, settings, fetch)),
        "__doc__": TaskService.__doc__,
    }
    if {"model", "revision"} & settings.model_fields_set:
        wanted = (settings.model, settings.revision, settings.base)
        members["checkpoint"] = CheckpointModel(*wanted)  # for `bentoml build`
    decorate = _decorator(settings, devices, tls, infer_paths(inference.served))
    built = decorate(type("Florence2Service", (TaskService,), members))
    scrape = metrics_endpoint(lambda: inference.statistics.as_metrics() + gpu_metrics())
    own = Starlette(
        routes=[
            *about_routes(inference, settings.max_body_bytes),
            task_route(inference, fetcher, settings.image_limits),
            Route("/metrics", scrape),
        ]
    )
    built.mount_asgi_app(own)
    chat = create_chat_app(inference, fetcher)
    site = Site(inference, public=keys is None, playground=settings.playground == "on")
    built.add_asgi_middleware(
        CountRequests, paths=functools.partial(known_paths, built, [own, site.app, chat], inference.served)
    )
    open_paths = OPEN_PATHS if settings.open_metrics else OPEN_PATHS - {"/metrics"}
    for middleware in middleware_of(
        ModelRepository([inference]),
        settings.max_body_bytes,
        keys,
        open_paths,
        budget=budget,
        origins=settings.cors_origins,
        site=site,
        chat=chat,
    ):
        built.add_asgi_middleware(middleware.cls, **middleware.kwargs)
    return built


def _decorator(settings: Settings, devices: Sequence[str], tls: Tls | None, unlogged: Sequence[str]) -> Any:
    """BentoML's decorator with its configuration. `unlogged`: paths that write log lines of their own."""
    on_gpus = [int(device.removeprefix("cuda:")) for device in devices if device != "cpu"]
    variant = image_settings("cpu" if settings.device == "cpu" else "gpu")
    decorator: Any = bentoml.service(
        name="florence2",
        http={"port": 8000},
        **({"ssl": tls.for_bentoml()} if tls else {}),
        workers=len(devices),
        resources={"gpu": max(on_gpus) + 1} if on_gpus else {},  # BentoML shows the first GPUs to workers
        traffic={"timeout": settings.timeout_s + GRACE_S},
        metrics={"enabled": False},  # they label any path that a client requests; see `http_metrics`
        # BentoML's line fails at a content type that is not UTF-8
        logging={"access": {"skip_paths": [*UNLOGGED, *unlogged], "request_content_type": False}},
        image=variant.image,
        envs=variant.envs,
    )
    return decorator


def _before_workers(settings: Settings, fetch: Fetch) -> None:
    prepare_supervisor()
    fetch(settings)


@functools.cache
def service_of_environment() -> Any:
    """The service for the settings in BentoML's arguments (`--arg device=cpu`) and, for the others, in the
    environment. Ends the process where they are wrong."""
    try:
        return build_service(packed_settings(read_settings(bentoml.use_arguments)), count_gpus())
    except FlorenceError as error:
        sys.exit(f"florence: {error}")

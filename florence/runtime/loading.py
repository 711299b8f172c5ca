"""Loads a checkpoint by name, and starts its engine and pipeline.

Step by step: the files, the weights, the way that the device computes with them, memory, engine and readers.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from typing import Any

from florence.checkpoint.adapters_beside import AdapterBase
from florence.checkpoint.weights import count_parameters, load_model
from florence.engine.config import EncodeStreamChoice, EngineConfig
from florence.engine.device.backend import Backend
from florence.engine.device.runner import Runner
from florence.engine.device.sizing import Needs, fit_memory
from florence.engine.encode_policy import setting_of
from florence.engine.loop import Engine
from florence.errors import SettingsError
from florence.images.preprocess import InputSize
from florence.model.devices import FP8, INT8, QUANTIZED, pick_device, pick_dtype, suit_process
from florence.model.florence2 import Florence2Model
from florence.model.products import ProductBackend
from florence.model.quantized import multiply_in_fp8, multiply_in_int8
from florence.readers.processes import ProcessReaders
from florence.readers.readers import Readers, ThreadReaders
from florence.runtime.adapters import Adapters
from florence.runtime.load_options import LoadOptions
from florence.runtime.model_files import ModelFiles, read_files
from florence.runtime.pipeline import Pipeline
from florence.types.info import RequestLimits
from florence.types.options import GenerationParameters

log = logging.getLogger(__name__)

_NOT_BESIDE = (
    "adapters that requests name (FLORENCE_ADAPTERS) stand beside float32, bfloat16 or float16 weights that "
    "hold no other: unset FLORENCE_ADAPTER, which is merged for all requests, and FLORENCE_DTYPE=int8"
)


@dataclass(frozen=True, slots=True)
class Loaded:
    """A running checkpoint. `info`: a description in JSON values."""

    options: LoadOptions
    pipeline: Pipeline
    engine: Engine
    runner: Runner
    readers: Readers
    info: dict[str, Any]

    def encode_stream(self) -> EncodeStreamChoice:
        """Where encodes run, "auto" until the engine has decided."""
        return setting_of(self.runner.decision)

    def memory(self) -> dict[str, int]:
        """Bytes of caches and buffers by name."""
        adapters = self.runner.model.adapters
        return {
            "caches": self.runner.caches.nbytes,
            "picture_cache": self.runner.features.nbytes,
            "pixels": self.readers.nbytes,
            "adapters": 0 if adapters is None else adapters.nbytes,
        }


def load(name: str, options: LoadOptions) -> Loaded:
    """Find, read and check a checkpoint, load it onto its device, and start the engine's thread.

    Errors are those of `Florence2.load`.
    """
    device = pick_device(options.device)
    dtype = pick_dtype(options.dtype, device)
    if options.adapters is not None and (options.adapter is not None or options.dtype == INT8):
        raise SettingsError(_NOT_BESIDE)
    files = read_files(name, options)
    config = files.fit(options.engine_config)
    suit_process(device)
    directory, tokens, normalize = files.checkpoint.directory, files.tokenizer.size, files.normalize
    merged = None if files.merged is None else (files.merged.label, files.merged.directory)
    model = load_model(directory, files.model, normalize, tokens, device, dtype, merged)
    parameters = count_parameters(model)  # before they are quantized
    backend = Backend.for_device(
        model.device, model.dtype, model.config.text.decoder_head_dim, model.config.vision, config
    )
    _choose_products(model, options.dtype, backend.products)
    base = AdapterBase(directory, files.model, normalize, tokens, options.max_adapter_rank)
    adapters = Adapters(files.tasks, options.adapters, base, options.max_adapters)
    if options.adapters is not None:
        model.adapters = backend.products.make_bank(model, options.max_adapters)
        model.adapters.reserve([each.layers for each in adapters.engine_adapters])
    needs = Needs.of(files.model, files.encoder_room(config), files.picture_size, dtype.itemsize)
    config = fit_memory(config, needs, backend.memory.free_bytes())
    pipeline = Pipeline(
        checkpoint=files.label,
        tokenizer=files.tokenizer,
        defaults=files.model.generation,
        max_new_tokens=config.max_new_tokens,
        adapters=adapters,
        score_temperature=options.score_temperature,
        max_tiles=options.tile_limit,
    )
    info = _describe(files, options, config, pipeline, parameters)
    runner = _make_runner(model, backend, files, config)
    readers = _start_readers(files, options, backend)
    engine = Engine(runner, config, observer=options.observer, on_broken=options.on_broken)
    loaded = Loaded(options, pipeline, engine, runner, readers, info)
    _log(loaded)
    return loaded


def _choose_products(model: Florence2Model, precision: str, products: ProductBackend) -> None:
    """Quantize the layers that this precision says, and pack the others."""
    if precision == INT8:
        multiply_in_int8(model)
    if precision == FP8:
        multiply_in_fp8(model, products.fp8())
    products.pack(model)


def _make_runner(model: Florence2Model, backend: Backend, files: ModelFiles, config: EngineConfig) -> Runner:
    """The runner, with its caches and buffers."""
    return Runner(
        model,
        config.max_batch_size,
        backend=backend,
        picture_tokens=files.picture_tokens,
        encode_batch=config.max_encode_batch,
        picture_size=files.picture_size,
        encoder_room=files.encoder_room(config),
        decoder_room=config.max_new_tokens,
        feature_bytes=config.picture_cache_bytes,
        reserved=config.reserved,
        ordered=files.tokenizer.location_ids,
    )


def _start_readers(files: ModelFiles, options: LoadOptions, backend: Backend) -> Readers:
    """The readers of pictures: processes, or threads of this process."""
    size = InputSize(*files.picture_size, files.preprocessing.resample, options.fast_jpeg)
    limits, on_read = options.limits, options.observer.read
    if options.readers:
        return ProcessReaders(size, limits, options.readers, on_read, on_memory=backend.memory.lock_pages)
    return ThreadReaders(size, limits, on_read=on_read)


def _describe(
    files: ModelFiles, options: LoadOptions, config: EngineConfig, pipeline: Pipeline, parameters: int
) -> dict[str, Any]:
    """The part of `info` that stays as it is. `parameters`: their number."""
    device = pick_device(options.device)
    dtype = str(pick_dtype(options.dtype, device)).removeprefix("torch.")
    pictures = asdict(options.limits)
    limits = asdict(config) | {f"max_image_{name.removeprefix('max_')}": pictures[name] for name in pictures}
    limits |= {"decode_memory_bytes": options.limits.decode_bytes, "max_tiles": pipeline.max_tiles}
    return {
        "checkpoint": files.checkpoint.name,
        "revision": files.checkpoint.revision,
        "adapter": None if files.merged is None else files.merged.label,
        "parameters": parameters,
        "device": str(device),
        "dtype": options.dtype if options.dtype in QUANTIZED else dtype,
        "picture_size": list(files.picture_size),
        "limits": {name: limits[name] for name in RequestLimits.model_fields},
        "generation": asdict(files.model.generation) | asdict(pipeline.options(GenerationParameters())),
    }


def _log(loaded: Loaded) -> None:
    """What was loaded, and how much memory it has."""
    info, caches, sizes = loaded.info, loaded.runner.caches, loaded.runner.sizes
    log.info(
        "loaded %s on %s as %s, with caches of %.0f MiB for %d requests of %d beams in all",
        loaded.pipeline.checkpoint, info["device"], info["dtype"],
        caches.nbytes / 2**20, sizes.slots, sizes.rows,
    )  # fmt: skip
    decode_mib = loaded.options.limits.decode_bytes / 2**20
    log.info("%d readers of pictures decode in %.0f MiB together", len(loaded.readers), decode_mib)

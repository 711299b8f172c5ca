"""Loads a checkpoint by name, and starts its engine and pipeline.

The one place that reads all files of a checkpoint and checks that they are consistent.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from florence.checkpoint.adapter_config import read_adapter_config
from florence.checkpoint.adapter_list import AdapterSources
from florence.checkpoint.adapters_beside import AdapterBase
from florence.checkpoint.config import read_config
from florence.checkpoint.hub import resolve_adapter, resolve_checkpoint
from florence.checkpoint.preprocessing import read_preprocessing
from florence.checkpoint.tokenizer import load_tokenizer
from florence.checkpoint.weights import count_parameters, load_model
from florence.engine.config import EncodeStreamChoice, EngineConfig
from florence.engine.device.backend import Backend
from florence.engine.device.cuda.find_kernels import find_low_rank, find_quantizer
from florence.engine.device.runner import Runner
from florence.engine.device.sizing import Needs, fit_memory
from florence.engine.encode_policy import setting_of
from florence.engine.loop import Engine
from florence.engine.observer import Observer
from florence.errors import CheckpointError, SettingsError
from florence.images.limits import ImageLimits
from florence.images.preprocess import InputSize, Preprocessing
from florence.model.adapters.grouped import make_bank
from florence.model.config import STRIDE, ModelConfig
from florence.model.devices import (
    FP8,
    INT8,
    QUANTIZED,
    bound_kernel_caches,
    keep_freed_memory,
    pick_device,
    pick_dtype,
)
from florence.model.kernels.linear import pack
from florence.model.quantized import multiply_in_fp8, multiply_in_int8
from florence.model.vision import Normalize
from florence.readers.processes import ProcessReaders
from florence.readers.readers import Readers, ThreadReaders
from florence.runtime.adapters import Adapters
from florence.runtime.own_tasks import own_tasks
from florence.runtime.pipeline import Pipeline
from florence.types.info import RequestLimits
from florence.types.options import GenerationParameters
from florence.types.tasks import TASKS, Task

log = logging.getLogger(__name__)

_NOT_BESIDE = (
    "adapters that requests name (FLORENCE_ADAPTERS) stand beside float32, bfloat16 or float16 weights that "
    "hold no other: unset FLORENCE_ADAPTER, which is merged for all requests, and FLORENCE_DTYPE=int8"
)


@dataclass(frozen=True, slots=True)
class Loaded:
    """A running checkpoint. `info`: a description in JSON values. `encode_stream`: returns where encodes run,
    "auto" until the engine has decided. `memory`: returns bytes of caches and buffers by name."""

    pipeline: Pipeline
    engine: Engine
    readers: Readers
    limits: ImageLimits
    observer: Observer
    info: dict[str, Any]
    encode_stream: Callable[[], EncodeStreamChoice]
    memory: Callable[[], dict[str, int]]


def load(
    name: str,
    *,
    revision: str | None,
    base: str | None,
    adapter: str | None,
    adapters: AdapterSources | None,
    max_adapters: int,
    max_adapter_rank: int,
    input_size: int | None,
    device: str,
    dtype: str,
    limits: ImageLimits,
    config: EngineConfig,
    readers: int,
    fast_jpeg: bool,
    observer: Observer,
    on_broken: Callable[[], None] | None,
    tasks: Sequence[Task] | str | None,
    score_temperature: float,
    max_tiles: int,
) -> Loaded:
    """Find, read and check a checkpoint, load it onto its device, and start the engine's thread.

    Arguments and errors are those of `Florence2.load`.
    """
    placed = pick_device(device)
    weights_dtype = pick_dtype(dtype, placed)
    if adapters is not None and (adapter is not None or dtype == INT8):
        raise SettingsError(_NOT_BESIDE)
    checkpoint = resolve_checkpoint(name, revision, base)
    merged = None if adapter is None else resolve_adapter(adapter)
    if tasks is None or isinstance(tasks, str):
        folders = [each.directory for each in (checkpoint, merged) if each is not None]
        tasks = own_tasks(tasks, *folders)
    table = TASKS.extended(tasks)
    label = checkpoint.label
    if merged is not None:
        label = f"{label} + {merged.label}"
        trained_on = read_adapter_config(merged.directory).base or "a checkpoint that it does not name"
        log.info("merging the adapter %s, which was trained on %s", merged.label, trained_on)
    files = read_config(checkpoint.directory)
    preprocessing = read_preprocessing(checkpoint.preprocessor, input_size)
    config = _fit_tokens(files, preprocessing, config)
    tokenizer = load_tokenizer(checkpoint.tokenizer, files.text.vocab_size)
    normalize = Normalize(preprocessing.mean, preprocessing.std, preprocessing.rescale)
    if placed.type == "cpu":
        keep_freed_memory()
        bound_kernel_caches()
    model = load_model(
        checkpoint.directory,
        files,
        normalize,
        tokenizer.size,
        placed,
        weights_dtype,
        None if merged is None else (merged.label, merged.directory),
    )
    parameters = count_parameters(model)
    if dtype == INT8:
        multiply_in_int8(model)
    if dtype == FP8:
        multiply_in_fp8(model, find_quantizer(placed, config.cuda_kernels))
    if config.cpu_kernels == "auto":
        pack(model, config.threads)
    beside = AdapterBase(checkpoint.directory, files, normalize, tokenizer.size, max_adapter_rank)
    named = Adapters(table, adapters, beside, max_adapters)
    backend = Backend.for_device(
        model.device,
        model.dtype,
        model.config.text.decoder_head_dim,
        model.config.vision,
        config,
    )
    if adapters is not None:
        model.adapters = make_bank(
            model,
            max_adapters,
            fixed_shapes=backend.capturer is not None,
            kernels=find_low_rank(placed, weights_dtype, config.cuda_kernels),
            threads=config.threads,
        )
        model.adapters.reserve([each.layers for each in named.engine_adapters])
    picture_tokens = _picture_tokens(preprocessing)
    encoder_room = picture_tokens + config.max_prompt_tokens
    needs = Needs.of(files, encoder_room, (preprocessing.height, preprocessing.width), weights_dtype.itemsize)
    config = fit_memory(config, needs, backend.memory.free_bytes())
    pipeline = Pipeline(
        checkpoint=label,
        tokenizer=tokenizer,
        defaults=files.generation,
        max_new_tokens=config.max_new_tokens,
        adapters=named,
        score_temperature=score_temperature,
        max_tiles=max(1, max_tiles),
    )
    image_limits = {f"max_image_{name.removeprefix('max_')}": value for name, value in asdict(limits).items()}
    declared = (
        asdict(config)
        | image_limits
        | {
            "decode_memory_bytes": limits.decode_bytes,
            "max_tiles": pipeline.max_tiles,
        }
    )
    info = {
        "checkpoint": checkpoint.name,
        "revision": checkpoint.revision,
        "adapter": None if merged is None else merged.label,
        "parameters": parameters,
        "device": str(placed),
        "dtype": dtype if dtype in QUANTIZED else str(weights_dtype).removeprefix("torch."),
        "picture_size": [preprocessing.height, preprocessing.width],
        "limits": {name: declared[name] for name in RequestLimits.model_fields},
        "generation": asdict(files.generation) | asdict(pipeline.options(GenerationParameters())),
    }
    runner = Runner(
        model,
        config.max_batch_size,
        backend=backend,
        picture_tokens=picture_tokens,
        encode_batch=config.max_encode_batch,
        picture_size=(preprocessing.height, preprocessing.width),
        encoder_room=encoder_room,
        decoder_room=config.max_new_tokens,
        feature_bytes=config.picture_cache_bytes,
        reserved=config.reserved,
        ordered=tokenizer.location_ids,
    )
    size = InputSize(preprocessing.height, preprocessing.width, preprocessing.resample, fast_jpeg)
    reading: Readers
    if readers:
        reading = ProcessReaders(size, limits, readers, observer.read, on_memory=backend.memory.lock_pages)
    else:
        reading = ThreadReaders(size, limits, on_read=observer.read)
    engine = Engine(runner, config, observer=observer, on_broken=on_broken)
    log.info(
        "loaded %s on %s as %s, with caches of %.0f MiB for %d requests of %d beams in all",
        label, info["device"], info["dtype"],
        runner.caches.nbytes / 2**20, runner.sizes.slots, runner.sizes.rows,
    )  # fmt: skip
    log.info("%d readers of pictures decode in %.0f MiB together", len(reading), limits.decode_bytes / 2**20)

    def memory() -> dict[str, int]:
        caches, features = runner.caches.nbytes, runner.features.nbytes
        adapters = 0 if model.adapters is None else model.adapters.nbytes
        return {
            "caches": caches,
            "picture_cache": features,
            "pixels": reading.nbytes,
            "adapters": adapters,
        }

    return Loaded(
        pipeline, engine, reading, limits, observer, info, lambda: setting_of(runner.decision), memory
    )


def _picture_tokens(preprocessing: Preprocessing) -> int:
    return 1 + (preprocessing.height // STRIDE) * (preprocessing.width // STRIDE)


def _fit_tokens(model: ModelConfig, preprocessing: Preprocessing, config: EngineConfig) -> EngineConfig:
    """The configuration with token limits capped to the model's positions. Raises `CheckpointError` where
    pictures of this size don't fit the tower or the encoder."""
    height, width = preprocessing.height, preprocessing.width
    most = STRIDE * model.vision.max_positions
    if height % STRIDE or width % STRIDE or max(height, width) > most:
        raise CheckpointError(
            f"pictures would be resized to {height}x{width} pixels, as preprocessor_config.json or "
            f"FLORENCE_INPUT_SIZE says; the tower needs multiples of {STRIDE} up to {most}"
        )
    picture_tokens = _picture_tokens(preprocessing)
    room = model.text.max_positions - picture_tokens
    if room < 1:
        raise CheckpointError(
            f"a picture of {height}x{width} pixels is {picture_tokens} tokens, "
            f"the encoder has positions for {model.text.max_positions}"
        )
    return replace(
        config,
        max_new_tokens=min(config.max_new_tokens, model.text.max_positions),
        max_prompt_tokens=min(config.max_prompt_tokens, room),
    )

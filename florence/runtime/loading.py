"""From a checkpoint's name to a running engine and the pipeline before it.

The one place that reads all files of a checkpoint and checks that they fit each other.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from florence.checkpoint.config import read_config
from florence.checkpoint.hub import resolve_checkpoint
from florence.checkpoint.tokenizer import load_tokenizer
from florence.checkpoint.weights import count_parameters, load_model
from florence.engine.device.graphs import CudaRecorder
from florence.engine.device.runner import Runner
from florence.engine.loop import Engine
from florence.engine.observer import Observer
from florence.engine.scheduler import BatchLimits, TokenLimits, limits_for
from florence.errors import CheckpointError
from florence.images.decode import ImageLimits
from florence.images.preprocess import Preprocessing
from florence.images.preprocessor_config import read_preprocessing
from florence.model.config import STRIDE, ModelConfig
from florence.model.decode import Kernel
from florence.model.devices import INT8, bound_kernel_caches, keep_freed_memory, pick_device, pick_dtype
from florence.model.florence2 import Florence2Model
from florence.model.kernels.cpu import attention as cpu_attention
from florence.model.kernels.cpu.openmp import available
from florence.model.kernels.linear import pack, quantize
from florence.model.vision import Normalize
from florence.runtime.pipeline import Pipeline
from florence.types.tasks import TASKS

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How to load and run a checkpoint; `Florence2.load` says what each means."""

    revision: str | None
    device: str
    dtype: str
    limits: ImageLimits
    batches: BatchLimits | None
    tokens: TokenLimits
    threads: int | None
    picture_cache_bytes: int
    reserved: bool
    observer: Observer | None
    on_broken: Callable[[], None] | None


@dataclass(frozen=True, slots=True)
class Loaded:
    """A checkpoint that answers. `info` says what runs, and how, in values that JSON can hold."""

    pipeline: Pipeline
    engine: Engine
    observer: Observer
    info: dict[str, Any]


def load(name: str, options: LoadOptions) -> Loaded:
    """Find, read, check and place a checkpoint, and start its engine's thread.

    Raises `CheckpointError` for a checkpoint that can't be found or does not fit, `SettingsError` for a
    device or dtype that is not there.
    """
    device = pick_device(options.device)
    dtype = pick_dtype(options.dtype, device)
    batches = options.batches or limits_for(device.type)
    checkpoint = resolve_checkpoint(name, options.revision)
    config = read_config(checkpoint.directory)
    preprocessing = read_preprocessing(checkpoint.directory)
    tokens = _token_limits(config, preprocessing, options.tokens)
    tokenizer = load_tokenizer(checkpoint.directory, config.text.vocab_size)
    normalize = Normalize(preprocessing.mean, preprocessing.std, preprocessing.rescale)
    if device.type == "cpu":
        keep_freed_memory()
        bound_kernel_caches()
    model = load_model(checkpoint.directory, normalize, tokenizer.size, device, dtype)
    parameters = count_parameters(model)
    if options.dtype == INT8:
        quantize(model.vision.tower, model.language.encoder, model.language.decoder)
    pack(model, options.threads)
    pipeline = Pipeline(
        checkpoint=checkpoint.label,
        tokenizer=tokenizer,
        preprocessing=preprocessing,
        defaults=config.generation,
        limits=options.limits,
        max_new_tokens=tokens.max_new_tokens,
    )
    info = {
        "checkpoint": checkpoint.name,
        "revision": checkpoint.revision,
        "parameters": parameters,
        "device": str(device),
        "dtype": INT8 if options.dtype == INT8 else str(dtype).removeprefix("torch."),
        "picture_size": [preprocessing.height, preprocessing.width],
        "limits": asdict(tokens) | asdict(options.limits) | asdict(batches),
        "generation": asdict(config.generation),
        "tasks": list(TASKS),
    }
    runner = _runner(model, batches, options, tokens, preprocessing)
    observer = options.observer or Observer()
    engine = Engine(
        runner,
        tokens,
        batches,
        threads=options.threads,
        observer=observer,
        on_broken=options.on_broken,
    )
    log.info(
        "loaded %s on %s as %s, with caches of %.0f MiB for %d requests of %d beams in all",
        checkpoint.label, info["device"], info["dtype"],
        runner.caches.nbytes / 2**20, runner.sizes.slots, runner.sizes.rows,
    )  # fmt: skip
    return Loaded(pipeline, engine, observer, info)


def _runner(
    model: Florence2Model,
    batches: BatchLimits,
    options: LoadOptions,
    tokens: TokenLimits,
    preprocessing: Preprocessing,
) -> Runner:
    """The way to run steps that suits the device."""
    on_gpu = model.language.shared.weight.is_cuda
    picture_tokens = _picture_tokens(preprocessing)
    return Runner(
        model,
        batches.max_batch_size,
        picture_tokens=picture_tokens,
        encode_batch=batches.max_encode_batch,
        picture_size=(preprocessing.height, preprocessing.width),
        encoder_room=picture_tokens + tokens.max_prompt_tokens,
        decoder_room=tokens.max_new_tokens,
        feature_bytes=options.picture_cache_bytes,
        kernel=None if on_gpu else cpu_kernel(model, options.threads),
        recorder=CudaRecorder(model.language.shared.weight.device) if on_gpu else None,
        late=on_gpu,
        reserved=options.reserved,
    )


def cpu_kernel(model: Florence2Model, threads: int | None = None) -> Kernel | None:
    """The attention kernel for a model on a CPU; None where there is none, and torch's own is used."""
    dtype, text = model.language.shared.weight.dtype, model.config.text
    if not available(dtype):
        return None
    return cpu_attention.CpuAttention(dtype, text.d_model // text.decoder.heads, threads)


def _picture_tokens(preprocessing: Preprocessing) -> int:
    return 1 + (preprocessing.height // STRIDE) * (preprocessing.width // STRIDE)


def _token_limits(config: ModelConfig, preprocessing: Preprocessing, wished: TokenLimits) -> TokenLimits:
    """The longest prompt and output: as wished, or as there are positions for. Checks that pictures of this
    size fit tower and encoder."""
    height, width = preprocessing.height, preprocessing.width
    most = STRIDE * config.vision.max_positions
    if height % STRIDE or width % STRIDE or max(height, width) > most:
        raise CheckpointError(
            f"preprocessor_config.json resizes to {height}x{width} pixels; "
            f"the tower needs multiples of {STRIDE} up to {most}"
        )
    picture_tokens = _picture_tokens(preprocessing)
    room = config.text.max_positions - picture_tokens
    if room < 1:
        raise CheckpointError(
            f"a picture of {height}x{width} pixels is {picture_tokens} tokens, "
            f"the encoder has positions for {config.text.max_positions}"
        )
    return TokenLimits(
        max_new_tokens=min(wished.max_new_tokens, config.text.max_positions),
        max_prompt_tokens=min(wished.max_prompt_tokens, room),
    )

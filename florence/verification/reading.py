"""Loads the other side: a checkpoint as transformers' Florence-2, its processor, and timm's DaViT.

Nothing here uses this package's tensor names or its loader, so a wrong mapping there is detected. A
checkpoint in transformers' layout is read by transformers' own loader. For one in Microsoft's layout, timm's
own conversion reads the tower; the language model already has the names of transformers' BART, and the six
names of the projector are listed here, since transformers' conversion script is not in its wheels. Only
`timm_name` maps between the two towers, which are compared with each other.

Knows nothing about trials or about this package's model.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from florence.checkpoint.files import CONFIG, read_json, weight_files
from florence.errors import CheckpointError
from florence.model.config import STRIDE
from florence.verification.merging import HEAD, merge_by_peft

IMAGE: Final = "<image>"
_TOWER: Final = "vision_tower."
_FIRST: Final = ("model.vision_tower.convs.0.conv.weight", "vision_tower.convs.0.proj.weight")
"""The name of one tensor in transformers' layout and in Microsoft's, to tell them apart."""
_TEXT: Final = "language_model.model."
_HEAD, _BIAS = "language_model.lm_head.weight", "language_model.final_logits_bias"
_PROJECTOR: Final = {
    "image_pos_embed.row_embeddings.weight": "image_position_embed.row_embeddings.weight",
    "image_pos_embed.column_embeddings.weight": "image_position_embed.column_embeddings.weight",
    "visual_temporal_embed.pos_idx_to_embed": "visual_temporal_embed.pos_idx_to_embed",
    "image_proj_norm.weight": "image_proj_norm.weight",
    "image_proj_norm.bias": "image_proj_norm.bias",
    "image_projection": "image_projection.weight",
}
_TO_TIMM: Final = (
    (r"^convs\.(\d+)\.", r"stages.\1.downsample."),
    (r"^blocks\.(\d+)\.(\d+)\.", r"stages.\1.blocks.\2."),
    (r"^stages\.0\.downsample\.", r"stem."),
    (r"_block\.(window|channel)_attn\.", r"_block.attn."),
    (r"_block\.ffn\.", r"_block.mlp."),
    (r"_block\.conv(\d)\.", r"_block.cpe\1.proj."),
)


def quiet_libraries() -> None:
    """Turn off transformers' progress bars and advice in the whole process, so that they don't mix with the
    report."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def read_model(directory: Path, tokens: int, adapter: Path | None = None) -> Any:
    """transformers' model of the checkpoint, in float32 on the CPU; `adapter`: merged into it by PEFT.

    `tokens`: number of the tokenizer's tokens, without `<image>`. Later rows of the head stand for no token,
    and this package drops them; here a bias of -inf prevents them from being chosen. `final_logits_bias`,
    which transformers' class drops, is added the same way. Raises `CheckpointError` where the library does
    not use all of the checkpoint.
    """
    from transformers import GenerationConfig

    original = _is_original(directory)
    model, bias = _from_original(directory) if original else (_from_native(directory), torch.zeros(0))
    if adapter is not None:
        merge_by_peft(model, adapter, lambda layers: _native_layers(model, layers))
    _bias(model, bias, tokens)
    model.generation_config = GenerationConfig()  # or the checkpoint's would fill in options
    return model.eval().requires_grad_(False)


def read_tower(directory: Path, model: Any, *, merged: bool = False) -> nn.Module:
    """timm's tower of the checkpoint, in float32: by timm's own conversion from Microsoft's layout; from
    transformers' layout, and where an adapter is `merged`, with the weights of transformers' `model`."""
    from timm.models.davit import ChannelAttentionV2, DaVit, checkpoint_filter_fn

    config = model.config.vision_config
    tower = DaVit(
        embed_dims=tuple(config.embed_dim),
        depths=tuple(config.depths),
        num_heads=tuple(config.num_heads),
        window_size=config.window_size,
        mlp_ratio=config.mlp_ratio,
        qkv_bias=config.qkv_bias,
        num_classes=0,
        global_pool="",
        down_kernel_size=3,
        channel_attn_v2=True,
        named_blocks=True,
    )
    for stage, groups in zip(tower.stages, config.num_groups, strict=True):
        for module in stage.modules():
            if isinstance(module, ChannelAttentionV2):
                module.groups = groups  # timm's has as many groups as heads
    tower.head = nn.Identity()
    if _is_original(directory) and not merged:
        state = checkpoint_filter_fn(_unwrapped(directory)[1], tower)
    else:
        state = {timm_name(name): each for name, each in model.model.vision_tower.state_dict().items()}
    tower.load_state_dict({name: each.float() for name, each in state.items()}, strict=True)
    read: nn.Module = tower.eval().requires_grad_(False)
    return read


def read_processor(words: Path, preprocessor: Path, side: int | None = None) -> Any:
    """transformers' own processor of prompts and pictures, with Pillow's resize as in the original.

    `words`: the directory with the tokenizer; `side`: pixels of the square that pictures are resized to;
    None: as the files say. No code of a checkpoint is run. Raises `CheckpointError` where transformers can't
    read the files.
    """
    from transformers import AutoImageProcessor, AutoTokenizer, Florence2Processor

    own = {"local_files_only": True, "trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(words, **own)
        size = {} if side is None else {"do_resize": True, "size": {"height": side, "width": side}}
        pictures = AutoImageProcessor.from_pretrained(preprocessor, backend="pil", **own, **size)
    except Exception as error:  # of many kinds; the library of tokenizers raises plain `Exception`
        raise CheckpointError(f"transformers can't read the tokenizer or preprocessor: {error}") from error
    known = tokenizer.get_vocab()
    added = [token for token in (*_added_tokens(), IMAGE) if token not in known]
    tokenizer.add_tokens(added, special_tokens=True)
    tokenizer.image_token, tokenizer.image_token_id = IMAGE, tokenizer.convert_tokens_to_ids(IMAGE)
    processor = Florence2Processor(image_processor=pictures, tokenizer=tokenizer)
    if side is not None:
        processor.num_image_tokens = 1 + (side // STRIDE) ** 2
    return processor


def timm_name(name: str) -> str:
    """The name in timm's tower for a tensor of transformers' tower."""
    for pattern, replacement in _TO_TIMM:
        name = re.sub(pattern, replacement, name)
    return name


def _is_original(directory: Path) -> bool:
    vision = read_json(directory / CONFIG).get("vision_config")
    return isinstance(vision, dict) and "dim_embed" in vision


def _from_native(directory: Path) -> Any:
    """transformers' model of a checkpoint in its own layout."""
    from transformers import Florence2Config

    wrapper, found = _unwrapped(directory)
    if not wrapper:
        return _load(directory)
    return _load(None, config=Florence2Config.from_pretrained(directory), state_dict=found)


def _from_original(directory: Path) -> tuple[Any, Tensor]:
    """transformers' model of a checkpoint in Microsoft's layout, with a row for `<image>` as transformers'
    script adds it, and the bias on the logits."""
    from timm.models.davit import checkpoint_filter_fn
    from transformers import Florence2ForConditionalGeneration

    _, found = _unwrapped(directory)
    tower = checkpoint_filter_fn(found, None)
    shared = next(found[name] for name in _shared_names() if name in found)
    head, bias = found.get(_HEAD, shared), found.get(_BIAS, torch.zeros(1, len(shared)))
    config = _native_config(read_json(directory / CONFIG), tied=torch.equal(head, shared))
    with torch.device("meta"):
        names = list(Florence2ForConditionalGeneration(config).model.vision_tower.state_dict())
    state = {f"model.{_TOWER}{name}": tower[timm_name(name)] for name in names}
    for name, tensor in found.items():
        if name.startswith(_TEXT) and name not in _shared_names():
            state[f"model.language_model.{name.removeprefix(_TEXT)}"] = tensor
    for name, native in _PROJECTOR.items():
        # The original uses the projection as `x @ W`.
        tensor = found[name].T if name == "image_projection" else found[name]
        state[f"model.multi_modal_projector.{native}"] = tensor.contiguous()
    state["model.language_model.shared.weight"] = nn.functional.pad(shared, (0, 0, 0, 1))
    state["lm_head.weight"] = nn.functional.pad(head, (0, 0, 0, 1))
    return _load(None, config=config, state_dict=state), bias[0]


def _native_layers(model: Any, layers: Collection[str]) -> Mapping[str, str]:
    """An adapter's names of layers -> the names in transformers' model. They may be equal; otherwise they are
    those of Microsoft's modules, and timm's own conversion maps the tower's. Raises `CheckpointError`."""
    from timm.models.davit import checkpoint_filter_fn

    known = {name for name, _ in model.named_modules()}
    if known.issuperset(layers):
        return dict(zip(layers, layers, strict=True))
    tower = {timm_name(name): name for name in model.model.vision_tower.state_dict()}
    telltale = {_FIRST[1]: "", **{f"{layer}.weight": layer for layer in layers if layer.startswith(_TOWER)}}
    found = {
        layer: f"model.{_TOWER}{tower.get(name, '').removesuffix('.weight')}"
        for name, layer in checkpoint_filter_fn(telltale, None).items()
        if layer
    }
    names = {f"{_TEXT}": "model.language_model.", "language_model.lm_head": HEAD}
    names |= {
        name.rpartition(".")[0]: f"model.multi_modal_projector.{native.rpartition('.')[0]}"
        for name, native in _PROJECTOR.items()
        if name.endswith(".weight")
    }
    for layer in set(layers) - found.keys():
        before = next((name for name in names if layer.startswith(name)), "")
        found[layer] = names.get(before, "") + layer.removeprefix(before)
    if strange := sorted(layer for layer, native in found.items() if native not in known):
        raise CheckpointError(f"transformers' model has no layer of the adapter's {', '.join(strange)}")
    return found


def _native_config(raw: Mapping[str, Any], *, tied: bool) -> Any:
    """transformers' configuration for Microsoft's `config.json`."""
    from transformers import Florence2Config

    vision, text = raw["vision_config"], raw["text_config"]
    sizes = {
        "model_type": "florence_vision",
        "embed_dim": vision["dim_embed"],
        "max_position_embeddings": vision["image_pos_embed"]["max_pos_embeddings"],
        "max_temporal_embeddings": vision["visual_temporal_embedding"]["max_temporal_embeddings"],
    }
    rows = text["vocab_size"]
    # For the text model this says whether encoder and decoder share one embedding, which they always do.
    words = {"model_type": "bart", "vocab_size": rows + 1, "tie_word_embeddings": True}
    return Florence2Config(
        vision_config=vision | sizes,
        text_config=text | words,
        image_token_id=rows,
        tie_word_embeddings=tied,
    )


def _load(source: Path | None, **arguments: Any) -> Any:
    """Load by transformers' own loader, in float32. Raises `CheckpointError` for missing or unexpected
    tensors."""
    from transformers import Florence2ForConditionalGeneration

    try:
        model, report = Florence2ForConditionalGeneration.from_pretrained(
            source,
            dtype=torch.float32,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            **arguments,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"transformers can't load the checkpoint: {error}") from error
    problems = {kind: sorted(map(str, names)) for kind, names in report.items() if names}
    if problems:
        raise CheckpointError(f"transformers does not take all of the checkpoint: {problems}")
    return model


def _bias(model: Any, bias: Tensor, tokens: int) -> None:
    """Add `bias` [tokens or 0] to the logits of the tokens, and -inf to those of the rows after them."""
    values = torch.zeros(model.lm_head.out_features)
    values[: len(bias)] = bias
    values[tokens:] = -torch.inf
    model.lm_head.bias = nn.Parameter(values)


def _unwrapped(directory: Path) -> tuple[str, dict[str, Tensor]]:
    """A wrapper's prefix of all names (`_orig_mod.`, usually ""), and all tensors by their names without
    it."""
    files = (load_file(directory / name) for name in weight_files(directory))
    found = {name: tensor for file in files for name, tensor in file.items()}
    ends = ((name, end) for name in found for end in _FIRST if name.endswith(end))
    wrapper = next((name.removesuffix(end) for name, end in ends), "")
    return wrapper, {name.removeprefix(wrapper): tensor for name, tensor in found.items()}


def _shared_names() -> tuple[str, ...]:
    """The names under which the shared embedding may be saved: one of them, or all."""
    return tuple(
        f"{_TEXT}{part}.weight" for part in ("shared", "encoder.embed_tokens", "decoder.embed_tokens")
    )


def _added_tokens() -> Iterable[str]:
    """The 1024 tokens that the original's processor adds to BART's, in its order (and its spelling)."""

    def pairs(*names: str) -> Iterable[str]:
        return (token for name in names for token in (f"<{name}>", f"</{name}>"))

    yield from pairs("od", "ocr")
    yield from (f"<loc_{number}>" for number in range(1000))
    yield from pairs("cap", "ncap", "dcap", "grounding", "seg")
    yield "<sep>"
    yield from pairs("region_cap", "region_to_desciption", "proposal", "poly")
    yield "<and>"

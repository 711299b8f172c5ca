"""The one model as the v2 protocol describes it: name, version, tensors, limits, metadata, configuration.

Constants and plain dicts, the same over HTTP and gRPC; knows nothing about requests.
"""

from __future__ import annotations

from typing import Any, Final

from florence import __version__
from florence.errors import NotFound, ProtocolError

MODEL_NAME: Final = "florence2"
MODEL_VERSION: Final = "1"
MAX_BATCH_SIZE: Final = 36  # rows of one request; as the replaced deployment's config
REQUIRED_INPUTS: Final = ("INPUT_IMAGE", "TASK_PROMPT")
INPUTS: Final = (*REQUIRED_INPUTS, "TEXT_PROMPT")
OUTPUT: Final = "PARSED_JSON"
EXTENSIONS: Final = ("binary_tensor_data", "model_configuration", "parameters", "statistics")
_LONGEST_VERSION: Final = 18  # digits that fit into Triton's 64-bit integer


def server_metadata() -> dict[str, Any]:
    """Name and version of the server, and the parts of Triton's protocol that it has."""
    return {"name": "florence", "version": __version__, "extensions": list(EXTENSIONS)}


def model_metadata() -> dict[str, Any]:
    """Inputs and outputs, from which clients generate requests. The first dimension is the batch."""
    tensor = {"datatype": "BYTES", "shape": [-1, 1]}
    return {
        "name": MODEL_NAME,
        "versions": [MODEL_VERSION],
        "platform": "python",
        "inputs": [{"name": name, **tensor} for name in INPUTS],
        "outputs": [{"name": OUTPUT, **tensor}],
    }


def model_config() -> dict[str, Any]:
    """Triton's model configuration. Unlike the metadata's shapes, `dims` leave the batch out."""
    tensor = {
        "data_type": "TYPE_STRING",
        "dims": [1],
        "is_shape_tensor": False,
        "is_non_linear_format_io": False,
    }
    given = {**tensor, "format": "FORMAT_NONE", "allow_ragged_batch": False}
    return {
        "name": MODEL_NAME,
        "platform": "",
        "backend": "python",
        "runtime": "",
        "version_policy": {"latest": {"num_versions": 1}},
        "max_batch_size": MAX_BATCH_SIZE,
        "input": [{"name": name, **given, "optional": name not in REQUIRED_INPUTS} for name in INPUTS],
        "output": [{"name": OUTPUT, **tensor, "label_filename": ""}],
        "batch_input": [],
        "batch_output": [],
        "instance_group": [],
        "default_model_filename": "",
        "cc_model_filenames": {},
        "metric_tags": {},
        "parameters": {},
        "model_warmup": [],
        "model_transaction_policy": {"decoupled": False},
    }


def repository_index(ready: bool, only_ready: bool) -> list[dict[str, Any]]:
    """The models that there are; with `only_ready`, those of them that take requests."""
    if not ready:
        return [] if only_ready else [{"name": MODEL_NAME, "version": MODEL_VERSION, "state": "LOADING"}]
    return [{"name": MODEL_NAME, "version": MODEL_VERSION, "state": "READY"}]


def check_model(name: str, version: str) -> None:
    """NotFound unless this is the model's name and version; version: decimal digits, "" for the latest.

    Raises ProtocolError for a version that is no number.
    """
    digits = version or MODEL_VERSION
    if not (digits.isascii() and digits.isdecimal()) or len(digits) > _LONGEST_VERSION:
        raise ProtocolError(f"failed to get model version from specified version string '{version[:60]}'")
    if name != MODEL_NAME:
        raise NotFound(f"Request for unknown model: '{name[:200]}' is not found")
    if int(digits) != int(MODEL_VERSION):
        raise NotFound(f"Request for unknown model: '{name}' version {int(digits)} is not found")


def check_statistics(name: str, version: str) -> None:
    """ProtocolError, in Triton's own words for statistics, unless this is the model's name and version."""
    if name not in ("", MODEL_NAME):
        raise ProtocolError(f"requested model '{name[:200]}' is not available")
    try:
        check_model(MODEL_NAME, version)
    except NotFound:
        raise ProtocolError(f"requested model version is not available for model '{MODEL_NAME}'") from None

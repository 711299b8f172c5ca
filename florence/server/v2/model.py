"""A served model as the v2 protocol describes it: name, version, tensors, limits, metadata, configuration.

Values and plain dicts, the same over HTTP and gRPC; knows nothing about requests. All Florence models have
the same tensors, but names and versions of their own, so one service can hold several.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from florence import __version__
from florence.errors import NotFound, ProtocolError

REQUIRED_INPUTS: Final = ("INPUT_IMAGE", "TASK_PROMPT")
INPUTS: Final = (*REQUIRED_INPUTS, "TEXT_PROMPT")
OUTPUT: Final = "PARSED_JSON"
EXTENSIONS: Final = ("binary_tensor_data", "model_configuration", "parameters", "statistics")
_LONGEST_VERSION: Final = 18  # digits that fit into Triton's 64-bit integer


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model as clients name it. `version`: a decimal number. `max_batch_size`: most rows of one request.

    The defaults are those of the Triton deployments that this service replaces.
    """

    name: str = "florence2"
    version: str = "1"
    max_batch_size: int = 36

    def check_version(self, version: str) -> None:
        """Raises NotFound unless it is this model's version. `version`: decimal digits, "" for the latest."""
        number = parse_version(version or self.version)
        if number != int(self.version):
            raise NotFound(f"Request for unknown model: '{self.name}' version {number} is not found")

    def metadata(self, adapters: Sequence[str] = ()) -> dict[str, Any]:
        """Inputs and outputs, from which clients generate requests. The first dimension is the batch.
        `adapters`: those that a request may name; Triton has no field for them."""
        tensor = {"datatype": "BYTES", "shape": [-1, 1]}
        about = {"parameters": {"adapters": ",".join(adapters)}} if adapters else {}
        return {
            "name": self.name,
            "versions": [self.version],
            "platform": "python",
            "inputs": [{"name": name, **tensor} for name in INPUTS],
            "outputs": [{"name": OUTPUT, **tensor}],
            **about,
        }

    def config(self, adapters: Sequence[str] = ()) -> dict[str, Any]:
        """Triton's model configuration. Unlike the metadata's shapes, `dims` leave the batch out."""
        tensor = {
            "data_type": "TYPE_STRING",
            "dims": [1],
            "is_shape_tensor": False,
            "is_non_linear_format_io": False,
        }
        given = {**tensor, "format": "FORMAT_NONE", "allow_ragged_batch": False}
        return {
            "name": self.name,
            "platform": "",
            "backend": "python",
            "runtime": "",
            "version_policy": {"latest": {"num_versions": 1}},
            "max_batch_size": self.max_batch_size,
            "input": [{"name": name, **given, "optional": name not in REQUIRED_INPUTS} for name in INPUTS],
            "output": [{"name": OUTPUT, **tensor, "label_filename": ""}],
            "batch_input": [],
            "batch_output": [],
            "instance_group": [],
            "default_model_filename": "",
            "cc_model_filenames": {},
            "metric_tags": {},
            "parameters": {"adapters": {"string_value": ",".join(adapters)}} if adapters else {},
            "model_warmup": [],
            "model_transaction_policy": {"decoupled": False},
        }


def server_metadata() -> dict[str, Any]:
    """Name and version of the server, and the parts of Triton's protocol that it has."""
    return {"name": "florence", "version": __version__, "extensions": list(EXTENSIONS)}


def parse_version(version: str) -> int:
    """The version as a number. Raises ProtocolError unless it is 1 to 18 decimal digits."""
    if not (version.isascii() and version.isdecimal()) or len(version) > _LONGEST_VERSION:
        raise ProtocolError(f"failed to get model version from specified version string '{version[:60]}'")
    return int(version)

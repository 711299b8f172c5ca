"""Finds the files of a checkpoint and of an adapter that is merged into it, and reads all but the weights.

Checks that they are consistent with each other and with what is asked for. Knows nothing about devices.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

from florence.checkpoint.adapter_config import read_adapter_config
from florence.checkpoint.config import read_config
from florence.checkpoint.hub import Checkpoint, resolve_adapter, resolve_checkpoint
from florence.checkpoint.preprocessing import read_preprocessing
from florence.checkpoint.tokenizer import Tokenizer, load_tokenizer
from florence.engine.config import EngineConfig
from florence.errors import CheckpointError
from florence.images.preprocess import Preprocessing
from florence.model.config import STRIDE, ModelConfig
from florence.model.vision import Normalize
from florence.runtime.load_options import LoadOptions
from florence.runtime.own_tasks import own_tasks
from florence.types.tasks import TASKS, TaskTable

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """What a checkpoint's files say. `merged`: the adapter that is merged into the weights, None for none;
    `tasks`: the built-in ones and the checkpoint's own."""

    checkpoint: Checkpoint
    merged: Checkpoint | None
    tasks: TaskTable
    model: ModelConfig
    preprocessing: Preprocessing
    tokenizer: Tokenizer

    @property
    def label(self) -> str:
        """The name in answers and log lines."""
        own = self.checkpoint.label
        return own if self.merged is None else f"{own} + {self.merged.label}"

    @property
    def normalize(self) -> Normalize:
        """How pixels become the tower's input."""
        found = self.preprocessing
        return Normalize(found.mean, found.std, found.rescale)

    @property
    def picture_size(self) -> tuple[int, int]:
        """Height and width that pictures are resized to, in pixels."""
        return self.preprocessing.height, self.preprocessing.width

    @property
    def picture_tokens(self) -> int:
        """Tokens of one picture."""
        height, width = self.picture_size
        return 1 + (height // STRIDE) * (width // STRIDE)

    def encoder_room(self, config: EngineConfig) -> int:
        """Positions of the encoder that a request takes at most."""
        return self.picture_tokens + config.max_prompt_tokens

    def fit(self, config: EngineConfig) -> EngineConfig:
        """The configuration with token limits capped to the model's positions. Raises `CheckpointError` where
        pictures of this size don't fit the tower or the encoder."""
        height, width = self.picture_size
        most = STRIDE * self.model.vision.max_positions
        if height % STRIDE or width % STRIDE or max(height, width) > most:
            raise CheckpointError(
                f"pictures would be resized to {height}x{width} pixels, as preprocessor_config.json or "
                f"FLORENCE_INPUT_SIZE says; the tower needs multiples of {STRIDE} up to {most}"
            )
        positions = self.model.text.max_positions
        room = positions - self.picture_tokens
        if room < 1:
            raise CheckpointError(
                f"a picture of {height}x{width} pixels is {self.picture_tokens} tokens, "
                f"the encoder has positions for {positions}"
            )
        return replace(
            config,
            max_new_tokens=min(config.max_new_tokens, positions),
            max_prompt_tokens=min(config.max_prompt_tokens, room),
        )


def read_files(name: str, options: LoadOptions) -> ModelFiles:
    """Find and read the files of the checkpoint `name`, downloaded if needed. Raises `CheckpointError` and
    `SettingsError`, as `Florence2.load` does."""
    checkpoint = resolve_checkpoint(name, options.revision, options.base)
    merged = None if options.adapter is None else resolve_adapter(options.adapter)
    tasks = options.tasks
    if tasks is None or isinstance(tasks, str):
        folders = [each.directory for each in (checkpoint, merged) if each is not None]
        tasks = own_tasks(tasks, *folders)
    table = TASKS.extended(tasks)
    if merged is not None:
        trained_on = read_adapter_config(merged.directory).base or "a checkpoint that it does not name"
        log.info("merging the adapter %s, which was trained on %s", merged.label, trained_on)
    model = read_config(checkpoint.directory)
    preprocessing = read_preprocessing(checkpoint.preprocessor, options.input_size)
    tokenizer = load_tokenizer(checkpoint.tokenizer, model.text.vocab_size)
    return ModelFiles(checkpoint, merged, table, model, preprocessing, tokenizer)

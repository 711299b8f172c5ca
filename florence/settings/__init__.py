"""The service's settings: read once from `FLORENCE_*` environment variables, checked, then frozen.

Knows nothing about models or HTTP. An unknown name is refused, so that a misspelt setting never passes as a
default. What BentoML itself reads (`BENTOML_*`: port, host, log format) is not covered.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from florence.errors import SettingsError
from florence.settings.declared import Settings
from florence.settings.names import is_foreign, suggest
from florence.types.environment import PREFIX

__all__ = ["Settings", "read_settings"]


def read_settings(make: Callable[[type[Settings]], Settings] = lambda settings: settings()) -> Settings:
    """The settings from the environment. Raises SettingsError for a wrong value or an unknown `FLORENCE_*`
    variable.

    `make` may add values: `bentoml.use_arguments` gives those of `--arg` precedence over the environment.
    """
    known = [PREFIX + field.upper() for field in Settings.model_fields]
    own = [(name, value) for name, value in sorted(os.environ.items()) if name.upper().startswith(PREFIX)]
    unknown = [name for name, value in own if name.upper() not in known and not is_foreign(name, value)]
    if unknown:
        raise SettingsError("; ".join(suggest(name, known) for name in unknown))
    return make(Settings)

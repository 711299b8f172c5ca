"""The logger of the service, which all modules of this room write to."""

from __future__ import annotations

import logging
from typing import Final

logger: Final = logging.getLogger("florence.service")

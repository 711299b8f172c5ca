"""Names of environment variables that client and service both know."""

from __future__ import annotations

from typing import Final

PREFIX: Final = "FLORENCE_"
"""Of the service's settings."""
CLIENT_KEY: Final = "FLORENCE_API_KEY"
"""The API key that a client sends. A service's environment may have it too; it is no setting."""

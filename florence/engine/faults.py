"""What a caller is told of an exception in the engine. Imports no torch.

Callers may keep errors, and a traceback's frames hold what their functions worked on: pictures and tensors.
So each error leaves the engine with those frames cleared; the log has had all of it.
"""

from __future__ import annotations

import traceback

from florence.errors import Closed, EngineError, FlorenceError


def stopped(cause: Exception | None = None) -> Closed:
    """The error of a request that was not finished when the engine ended; `cause`: what ended it, if it was
    an error."""
    clear_frames(cause)
    error = Closed("the engine stopped before the request was finished; send it to another instance")
    error.__cause__ = cause
    return error


def fault_of(error: Exception) -> FlorenceError:
    """The error of a request that failed with this exception."""
    clear_frames(error)
    error.__traceback__ = error.__context__ = None
    if isinstance(error, FlorenceError):
        return error
    fault = EngineError(f"the request failed on the device: {type(error).__name__}")
    fault.__cause__ = error
    return fault


def clear_frames(error: BaseException | None) -> None:
    """Empty the frames of an exception and of its causes; those that still run are left alone."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:  # an error may be its own cause
        seen.add(id(error))
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__

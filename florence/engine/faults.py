"""What a caller is told of an exception in the engine. Imports no torch.

Callers may keep errors, and the frames of a traceback, with those that called them, hold what the functions
worked on: pictures and tensors. So errors leave the engine without tracebacks; the log has them.
"""

from __future__ import annotations

from collections.abc import Iterator

from florence.errors import Closed, EngineError, FlorenceError


def stopped(cause: Exception | None = None) -> Closed:
    """The error of a request that was not finished when the engine ended; `cause`: what ended it, if it was
    an error."""
    strip_tracebacks(cause)
    error = Closed("the engine stopped before the request was finished; send it to another instance")
    error.__cause__ = cause
    return error


def fault_of(error: Exception) -> FlorenceError:
    """The error of a request that failed with this exception."""
    strip_tracebacks(error)
    error.__context__ = None
    if isinstance(error, FlorenceError):
        return error
    fault = EngineError(f"the request failed on the device: {type(error).__name__}")
    fault.__cause__ = error
    return fault


def strip_tracebacks(error: BaseException | None) -> None:
    """Remove the tracebacks of an exception and of its causes."""
    for each in chain_of(error):
        each.__traceback__ = None


def chain_of(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and its causes."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:  # an error may be its own cause
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__

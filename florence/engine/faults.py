"""The errors that callers get for exceptions in the engine. Imports no torch.

A caller may keep an error, and the frames of its traceback would keep pictures and tensors alive. So errors
leave the engine without tracebacks; the log has them.
"""

from __future__ import annotations

from florence.errors import Closed, EngineError, FlorenceError


def stopped(cause: Exception | None = None) -> Closed:
    """The error for requests that were not finished when the engine ended. `cause`: the error that ended it,
    None if it was closed."""
    strip_tracebacks(cause)
    error = Closed("the engine stopped before the request was finished; send it to another instance")
    error.__cause__ = cause
    return error


def fault_of(error: Exception) -> FlorenceError:
    """The error for a request that failed with this exception."""
    strip_tracebacks(error)
    error.__context__ = None
    if isinstance(error, FlorenceError):
        return error
    fault = EngineError(f"the request failed on the device: {type(error).__name__}")
    fault.__cause__ = error
    return fault


def not_finite() -> EngineError:
    """The error for a request whose logits are not finite."""
    return EngineError("the model computed NaN or infinite values for this request")


def strip_tracebacks(error: BaseException | None) -> None:
    """Remove the tracebacks of an exception and of its causes."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:  # an error may be its own cause
        seen.add(id(error))
        error.__traceback__ = None
        error = error.__cause__ or error.__context__

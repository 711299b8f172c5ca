"""The errors that callers see, each with the HTTP status it becomes.

FlorenceError
├── RequestError 400          the request can't be answered as it stands; the message says what to change
│   ├── ImageError 400        not a picture, truncated, an unsupported format
│   │   ├── ImageTooLarge 413 more bytes, pixels or frames than allowed
│   │   ├── UrlError 400      a picture's URL that is malformed or not allowed
│   │   └── NoPicture 422     the URL's host has no picture there
│   ├── TaskError 400         unknown task, or its text or region is missing or not wanted
│   ├── RegionError 400       a malformed region, or one outside the picture
│   ├── FieldError 400        a field of a chat completion is wrong, or not supported
│   ├── OptionError 400       a generation option out of range
│   └── ProtocolError 400     a malformed v2 request
│       ├── MalformedJson 400     not JSON; the message says where
│       └── TooMuchStructure 400  more values, or longer ones, than any request has
├── Unauthorized 401          no API key, or an unknown one
├── NotFound 404              unknown model or version
│   └── UnknownModel 404      of a chat completion
├── SlowBody 408              a body that does not arrive in the time allowed
├── BodyTooLarge 413          a body longer than the service takes, also once it is decompressed
├── ClientLeft 499            the client no longer waits for the answer
├── UnknownEncoding 501       a Content-Encoding that can't be decoded
├── FetchFailed 502           the host of a picture's URL can't be reached, or fails
├── Unavailable 503           come back later; `retry_after_s` says when
│   ├── Overloaded 503        the waiting queue is full, or the wait would be too long
│   └── Closed 503            starting, stopping or stopped
├── DeadlineExceeded 504      not finished in the time given
├── EngineError 500           the device or the model failed on this request
├── CheckpointError 500       a checkpoint can't be found or doesn't fit
│   └── RepositoryError 500   a repository of the hub: missing, not reached, or without weights
├── MissingLibrary 500        an optional library that is not installed
└── SettingsError 500         a setting is unknown or out of range
"""

from __future__ import annotations

from typing import ClassVar


class FlorenceError(Exception):
    """Base of all errors of this package; `str(error)` is meant for users."""

    status: ClassVar[int] = 500


class RequestError(FlorenceError):
    """The request can't be answered as it stands."""

    status = 400


class ImageError(RequestError):
    """The bytes are not a picture that can be read."""


class ImageTooLarge(ImageError):
    """The picture has more bytes, pixels or frames than the limits allow."""

    status = 413


class UrlError(ImageError):
    """The picture's URL is malformed, or the service may not fetch from there."""


class NoPicture(ImageError):
    """The host of the picture's URL answered, without a picture."""

    status = 422


class TaskError(RequestError):
    """The task is unknown, or its text or region is missing or not wanted."""


class RegionError(RequestError):
    """The region is malformed or lies outside the picture."""


class OptionError(RequestError):
    """A generation option is unknown or out of range."""


class FieldError(RequestError):
    """A field of a chat completion's body is wrong, or not supported.

    `param`: the field's path, such as messages[0].content; None: the error is about no single field. `code`:
    OpenAI's code for the error; None: it has none.
    """

    def __init__(self, param: str | None, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.param, self.code = param, code


class ProtocolError(RequestError):
    """The body is not a request of the v2 protocol for this model."""


class MalformedJson(ProtocolError):
    """The body is not JSON. `reason` and `position`: what is wrong, and where; None: that is not known."""

    def __init__(self, reason: str, position: int | None = None) -> None:
        told = reason if position is None else f"{reason.removesuffix(' at')} at {position}"
        super().__init__(f"failed to parse the request JSON buffer: {told}")
        self.reason, self.position = reason, position


class TooMuchStructure(ProtocolError):
    """A message has more values, or longer ones, than any request; it is not parsed."""

    def __init__(self, what: str, reason: str) -> None:
        super().__init__(f"the request's {what} is more than a request can hold: {reason}")


class Unauthorized(FlorenceError):
    """The request has no API key, or one that the service does not know."""

    status = 401


class NotFound(FlorenceError):
    """No model or version of that name is served."""

    status = 404


class UnknownModel(NotFound):
    """A chat completion names a model that is not served."""


class BodyTooLarge(FlorenceError):
    """The request's body is longer than the service takes, as it is sent or once it is decompressed."""

    status = 413

    def __init__(self, max_bytes: int) -> None:
        super().__init__(
            f"the request's body is larger than the {max_bytes} bytes allowed (FLORENCE_MAX_BODY_BYTES)"
        )


class SlowBody(FlorenceError):
    """The request's body did not arrive in the time that the service waits for one."""

    status = 408

    def __init__(self, timeout_s: float) -> None:
        super().__init__(
            f"the request's body did not arrive within {timeout_s:g} s (FLORENCE_BODY_TIMEOUT_S)"
        )


class ClientLeft(FlorenceError):
    """The client left before its answer; 499, as nginx calls it."""

    status = 499

    def __init__(self) -> None:
        super().__init__("the client left before the answer")


class UnknownEncoding(FlorenceError):
    """The body has a Content-Encoding that the service can't decode."""

    status = 501

    def __init__(self) -> None:
        super().__init__("Unsupported compression type")


class FetchFailed(FlorenceError):
    """The host of a picture's URL can't be reached, fails, or breaks off; another try may help."""

    status = 502


class Unavailable(FlorenceError):
    """The request was not accepted, or not finished because the model closed; it may be sent again.

    `retry_after_s`: seconds after which another try makes sense.
    """

    status = 503

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Overloaded(Unavailable):
    """The waiting queue is full, or a request would wait longer than is allowed."""


class Closed(Unavailable):
    """The engine is starting, stopping or stopped. Requests that it accepted and can't finish get this error
    too."""


class DeadlineExceeded(FlorenceError):
    """The time given for the request passed before it finished."""

    status = 504

    @classmethod
    def of_request(cls, timeout_s: float | None = None) -> DeadlineExceeded:
        """The error of a request that is late. `timeout_s`: its time limit in seconds, where it is known."""
        limit = "the time given for it" if timeout_s is None else f"{timeout_s:g} s"
        return cls(f"the request was not finished within {limit}")


class EngineError(FlorenceError):
    """The device or the model failed on this request."""


class CheckpointError(FlorenceError):
    """A checkpoint can't be found, read, or doesn't fit the model."""


class RepositoryError(CheckpointError):
    """A repository of the hub does not exist, can't be reached, or has no weights in a supported format."""


class MissingLibrary(FlorenceError):
    """The command or request needs a library that only one of this package's extras installs."""

    def __init__(self, what: str, library: str, extra: str) -> None:
        super().__init__(
            f"{what} needs {library}: install it with `pip install {library}`, or in this project's folder "
            f'with `pip install ".[{extra}]"`'
        )


class SettingsError(FlorenceError):
    """A setting is unknown or out of range."""


def words_of(error: Exception) -> str:
    """The error in one line: of an OSError what is wrong, with the name of the file where it has one."""
    if not isinstance(error, OSError) or error.strerror is None:
        return str(error)
    return error.strerror if error.filename is None else f"{str(error.filename)[:200]}: {error.strerror}"


def is_foreseen(error: Exception) -> bool:
    """Whether `words_of` says all that an operator needs, and a traceback would only hide it."""
    if isinstance(error, OSError):
        return error.filename is not None
    return isinstance(error, FlorenceError) and not isinstance(error, EngineError | Closed)


def quote(value: object, longest: int = 80) -> str:
    """The value's `repr` for a message, cut after `longest` characters so that a huge one can't fill a
    log."""
    text = repr(value[: longest + 1] if isinstance(value, str | bytes) else value)
    return text if len(text) <= longest else text[:longest] + "..."

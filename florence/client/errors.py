"""Errors that only a client raises. Its other errors are those of `florence.errors`, with the server's own
messages; `florence.client` exports all of them.

FlorenceError
├── RequestError              400: picture, task, text, region or option; the message says what to change
│   └── ImageError            the picture can't be read here
│       ├── ImageTooLarge     413
│       └── NoPicture         422: the host of an ImageUrl has no picture there
├── NotFound                  404: no such endpoint at this URL
├── Unavailable               429 and 503, after all tries; `retry_after_s` says when to come back
│   └── Unreachable           nothing listens there, or the name is not known
├── DeadlineExceeded          504, or no answer within `timeout_s`
├── EngineError               500
├── FetchFailed               502: the host of an ImageUrl can't be reached by the service, or fails
├── ConnectionLost            the connection broke before the answer
└── UnexpectedReply           any other status, or a body that is not an answer: probably another program
"""

from __future__ import annotations

from florence.errors import FlorenceError, Unavailable


class Unreachable(Unavailable):
    """No connection to the server could be made."""


class ConnectionLost(FlorenceError):
    """The connection broke before the answer; the server may have done the work."""


class UnexpectedReply(FlorenceError):
    """The reply is not one of this service's.

    `reply_status`: its HTTP status.
    """

    def __init__(self, message: str, reply_status: int) -> None:
        super().__init__(message)
        self.reply_status = reply_status

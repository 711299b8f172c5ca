"""What only a client meets. All else that it raises is of `florence.errors`, with the server's own words;
`florence.client` has all of them.

FlorenceError
├── RequestError              400: picture, task, text, region or option; the words say what to change
│   └── ImageError            the picture can't be read here
│       └── ImageTooLarge     413
├── NotFound                  404: no such endpoint at this URL
├── Unavailable               429 and 503, after all tries; `retry_after_s` says when to come back
│   └── Unreachable           nothing listens there, or the name is not known
├── DeadlineExceeded          504, or no answer within `timeout_s`
├── EngineError               500
├── ConnectionLost            the connection broke before the answer
└── UnexpectedReply           any other status, or an answer that is not one; something else answers there?
"""

from __future__ import annotations

from florence.errors import FlorenceError, Unavailable


class Unreachable(Unavailable):
    """No connection to the server could be made."""


class ConnectionLost(FlorenceError):
    """The connection broke before the answer came: whether the server did the work is not known."""


class UnexpectedReply(FlorenceError):
    """What answered does not answer as this service does.

    `reply_status`: the HTTP status that came.
    """

    def __init__(self, message: str, reply_status: int) -> None:
        super().__init__(message)
        self.reply_status = reply_status

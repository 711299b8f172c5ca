"""What passes between a process and its readers, over one stream socket: plain structs, nothing that runs.

To the reader: REQUEST and the payload. Back: BEGUN when the payload has come, NEEDED when its header is read,
and REPLY with a text when it is done. Between NEEDED, where it is not 0, and the decoding, the reader waits
for GO. The pixels are in the slot that the request names.
"""

from __future__ import annotations

from struct import Struct
from typing import Final, NamedTuple

REQUEST: Final = Struct("<B?3BIIIQ")
"""Kind; view: the original's, background, frame and page, 0 for none; slot, bytes of the payload."""
BEGUN: Final = b"b"
NEEDED: Final = Struct("<Q")  # bytes of memory that the decoding takes; 0: there is nothing to decode
GO: Final = b"g"
REPLY: Final = Struct("<BII32sI")  # status, width and height of the original, digest, bytes of the text

DATA: Final = 0  # the payload is an encoded picture
PATH: Final = 1  # the payload is a file's path

READ: Final = 0
REFUSED: Final = 1  # ImageError
TOO_LARGE: Final = 2  # ImageTooLarge

LONGEST_TEXT: Final = 4096  # bytes


class ReadJob(NamedTuple):
    """What a reader process is started with."""

    memory_fd: int
    slot_bytes: int
    height: int
    width: int
    resample: int
    fast_jpeg: bool
    max_bytes: int
    max_pixels: int
    max_side: int
    max_frames: int
    decode_bytes: int
    pdf_dpi: int
    slack_bytes: int
    cpu_s: int

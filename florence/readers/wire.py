"""The messages between a process and its readers over one stream socket: plain structs, no pickled objects.

To the reader: REQUEST, TILING and the payload. Back: BEGUN once the payload has arrived, NEEDED once the
picture's header is read, and REPLY with a text at the end. If NEEDED is not 0, the reader waits for GO before
it decodes. The pixels are in the slot that the request names. A picture cut into tiles has a REPLY for each
tile; before each but the first, the other end, which knows the tiles from the picture's size, sends a SLOT
for it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from struct import Struct
from typing import Final

from florence.images.limits import ImageLimits
from florence.images.preprocess import InputSize
from florence.images.tiles import Tiling

REQUEST: Final = Struct("<B?3BIIIQ")
"""Kind; the view: whether it is the original, background, frame and page (0: none); slot; bytes of the
payload."""
TILING: Final = Struct("<?HHdddI")  # behind REQUEST: whether the picture is cut, and the fields of `Tiling`
BEGUN: Final = b"b"
NEEDED: Final = Struct("<Q")  # bytes of memory that the decoding takes; 0: there is nothing to decode
GO: Final = b"g"
REPLY: Final = Struct("<BII32sI")  # status, width and height of the original, digest, bytes of the text

DATA: Final = 0  # the payload is an encoded picture
PATH: Final = 1  # the payload is a file's path

SLOT: Final = Struct("<I")

READ: Final = 0
REFUSED: Final = 1  # ImageError
TOO_LARGE: Final = 2  # ImageTooLarge

MAX_TEXT_BYTES: Final = 4096


@dataclass(frozen=True, slots=True)
class ProcessLimits:
    """What one picture may cost a reader process.

    `slack_bytes`: private memory beyond what is computed from the picture's header. `cpu_s`: CPU time, in
    whole seconds. `wall_s`: seconds in all, for a file system that does not answer.
    """

    slack_bytes: int = 64 * 2**20
    cpu_s: int = 10
    wall_s: float = 120.0


@dataclass(frozen=True, slots=True)
class ReadJob:
    """What a reader process is started with. `memory_fd`: the descriptor of the slots' memory; `slot_bytes`:
    of each slot."""

    memory_fd: int
    slot_bytes: int
    size: InputSize
    limits: ImageLimits
    process_limits: ProcessLimits

    def pack(self) -> str:
        """The job as text."""
        return json.dumps(asdict(self))

    @classmethod
    def unpack(cls, text: str) -> ReadJob:
        """The job from `pack`."""
        fields = json.loads(text)
        size, limits = InputSize(**fields.pop("size")), ImageLimits(**fields.pop("limits"))
        return cls(
            size=size, limits=limits, process_limits=ProcessLimits(**fields.pop("process_limits")), **fields
        )


def pack_tiling(tiling: Tiling | None) -> bytes:
    """TILING as bytes; without a grid, columns and rows are 0."""
    if tiling is None:
        return TILING.pack(False, 0, 0, 0.0, 0.0, 0.0, 0)
    return TILING.pack(True, *(tiling.grid or (0, 0)), tiling.scale, *tiling.overlap, tiling.max_tiles)


def read_tiling(packed: bytes | bytearray) -> Tiling | None:
    """The inverse of `pack_tiling`."""
    cut, columns, rows, scale, *overlap, max_tiles = TILING.unpack(packed)
    return (
        Tiling((columns, rows) if columns else None, scale, (overlap[0], overlap[1]), max_tiles)
        if cut
        else None
    )

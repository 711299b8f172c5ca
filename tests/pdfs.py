"""Small PDFs written by hand: pages of given sizes with a coloured square, and broken variants."""

from __future__ import annotations

from collections.abc import Sequence

RED, BLUE, GREEN = "1 0 0", "0 0 1", "0 1 0"


def pdf(
    colours: Sequence[str] = (RED, BLUE, GREEN),
    size: tuple[float, float] = (144, 72),
    *,
    rotate: int = 0,
    encrypted: bool = False,
) -> bytes:
    """A PDF with one page for each colour, of `size` points: a square of 36 points in the upper left corner
    has the colour. encrypted: with an unknown password."""
    count, first = len(colours), 3
    kids = " ".join(f"{first + 2 * index} 0 R" for index in range(count))
    objects = ["<< /Type /Catalog /Pages 2 0 R >>", f"<< /Type /Pages /Count {count} /Kids [{kids}] >>"]
    for index, colour in enumerate(colours):
        drawn = f"{colour} rg 0 {size[1] - 36} 36 36 re f"
        content = first + 2 * index + 1
        box = f"[0 0 {size[0]} {size[1]}]"
        page = f"<< /Type /Page /Parent 2 0 R /MediaBox {box} /Rotate {rotate} /Contents {content} 0 R >>"
        objects += [page, f"<< /Length {len(drawn)} >>\nstream\n{drawn}\nendstream"]
    trailer = f"/Size {len(objects) + 1} /Root 1 0 R"
    if encrypted:
        key = "<" + "61" * 32 + ">"
        trailer += f" /ID [{key} {key}] /Encrypt << /Filter /Standard /V 1 /R 2 /O {key} /U {key} /P -4 >>"
    data, places = b"%PDF-1.4\n", []
    for number, each in enumerate(objects, start=1):
        places.append(len(data))
        data += f"{number} 0 obj\n{each}\nendobj\n".encode()
    table = "".join(f"{place:010} 00000 n \n" for place in places)
    end = f"xref\n0 {len(places) + 1}\n0000000000 65535 f \n{table}trailer\n<< {trailer} >>\n"
    return data + f"{end}startxref\n{len(data)}\n%%EOF\n".encode()

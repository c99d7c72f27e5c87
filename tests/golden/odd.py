"""Odd but ordinary pictures, and what Pillow makes of them.

Run: python tests/golden/odd.py   (needs Pillow and numpy; made with Pillow 13.0.0)
Writes tests/golden/odd/*: one file per case, and expected.json with size and RGB bytes in hex of
`Image.open(f).convert("RGB")` ("stored") and, where it is another picture, of `ImageOps.exif_transpose` of it ("upright").
"""

import io
import json
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

warnings.simplefilter("ignore")
HERE = Path(__file__).parent / "odd"
HERE.mkdir(exist_ok=True)
W, H = 9, 5
y, x = np.mgrid[0:H, 0:W]
COLOURS = np.stack([x * 20 + 15, y * 30 + 20, (x + y) * 12 + 10], axis=-1).astype(np.uint8)
RGB = Image.fromarray(COLOURS)
GREY = RGB.convert("L")
ALPHA = Image.fromarray((x * y * 6).astype(np.uint8))
FILES: dict[str, bytes] = {}


def save(image, kind, **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def exif(number, kind="H", order="<", tag=0x0112, lead=b"Exif\0\0", first=8):
    """EXIF with one entry before the orientation."""
    codes = {"B": 1, "H": 3, "I": 4, "b": 6}
    mark = b"II*\0" if order == "<" else b"MM\0*"
    value = struct.pack(order + kind, number).ljust(4, b"\0")
    entries = struct.pack(order + "HHI", 0x0100, 3, 1) + struct.pack(order + "HH", W, 0)
    entries += struct.pack(order + "HHI", tag, codes[kind], 1) + value
    body = mark + struct.pack(order + "I", first) + b"\0" * (first - 8)
    return lead + body + struct.pack(order + "H", 2) + entries + b"\0\0\0\0"


def with_segments(*segments):
    """The JPEG with APP1 segments before everything else."""
    jpeg = save(RGB, "JPEG", quality=95, subsampling=0)
    extra = b"".join(b"\xff\xe1" + struct.pack(">H", len(s) + 2) + s for s in segments)
    return jpeg[:2] + extra + jpeg[2:]


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(bits, colour, rows, *chunks, after=()):
    """A PNG of rows of bytes."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", W, H, bits, colour, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + bytes(row) for row in rows)))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + data + b"".join(after) + chunk(b"IEND", b"")


def packed(values, bits):
    """Rows of values of fewer than 8 bits."""
    rows = []
    for row in values:
        text = "".join(format(int(v), f"0{bits}b") for v in row)
        text += "0" * (-len(text) % 8)
        rows.append(bytes(int(text[i : i + 8], 2) for i in range(0, len(text), 8)))
    return rows


# Orientation.
for number in range(1, 9):
    tag = Image.Exif()
    tag[0x0112] = number
    FILES[f"turned-{number}.jpg"] = save(RGB, "JPEG", quality=95, subsampling=0, exif=tag)
    FILES[f"turned-{number}.png"] = save(RGB, "PNG", exif=tag)
    FILES[f"turned-{number}.webp"] = save(RGB, "WEBP", lossless=True, exif=tag)
    FILES[f"turned-{number}.tiff"] = save(RGB, "TIFF", exif=tag)
XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="%d"/></x:xmpmeta>'
ELEMENT = b"<x:xmpmeta><tiff:Orientation>%d</tiff:Orientation></x:xmpmeta>"
ADOBE = b"http://ns.adobe.com/xap/1.0/\0"
plain = RGB.tobytes()
rows = [plain[i * W * 3 : (i + 1) * W * 3] for i in range(H)]
profile = exif(8)
hexed = b"\nexif\n%8d\n" % len(profile) + profile.hex().encode() + b"\n"
FILES |= {
    "big-endian.jpg": with_segments(exif(6, order=">")),
    "long.jpg": with_segments(exif(5, "I")),
    "signed-byte.jpg": with_segments(exif(7, "b")),
    "bare-byte.jpg": with_segments(exif(7, "B")),
    "marked-twice.jpg": with_segments(b"Exif\0\0" + exif(3)),
    "two-segments.jpg": with_segments(exif(6)[:20], b"Exif\0\0" + exif(6)[20:]),
    "later-directory.jpg": with_segments(exif(6, first=40)),
    "xmp.jpg": with_segments(ADOBE + XMP % 6),
    "xmp-element.jpg": with_segments(ADOBE + ELEMENT % 8),
    "exif-over-xmp.jpg": with_segments(ADOBE + XMP % 6, exif(3)),
    "exif-without-it-xmp.jpg": with_segments(exif(3, tag=0x0113), ADOBE + XMP % 6),
    "zero.jpg": with_segments(exif(0)),
    "nine.jpg": with_segments(exif(9)),
    "huge.jpg": with_segments(exif(65535)),
    "xmp.png": png(8, 2, rows, chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP % 6)),
    "exif-behind.png": png(8, 2, rows, after=[chunk(b"eXIf", exif(6, lead=b""))]),
    "profile.png": png(8, 2, rows, chunk(b"tEXt", b"Raw profile type exif\0" + hexed)),
    "packed-profile.png": png(8, 2, rows, chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(hexed))),
    "grey-turned.png": png(16, 0, [b"\0\x40" * 4 + b"\1\0" * 5] * H, chunk(b"eXIf", exif(6, lead=b""))),
    "xmp.webp": save(RGB, "WEBP", lossless=True, xmp=XMP % 6),
}

# Transparency of one value, few bits, palettes.
sixteen = (x * 300 + y * 7).astype(">u2")
low = (x * 25 + y * 7).astype(">u2")
palette = chunk(b"PLTE", bytes((i * 37 + j * 11) % 256 for i in range(16) for j in range(3)))
FILES |= {
    "grey-16-one-transparent.png": png(16, 0, [r.tobytes() for r in low], chunk(b"tRNS", b"\0\x19")),
    "grey-16-wide-one-transparent.png": png(16, 0, [r.tobytes() for r in sixteen], chunk(b"tRNS", b"\0\0")),
    "grey-16-alpha.png": png(16, 4, [np.stack([r, r], -1).tobytes() for r in sixteen]),
    "grey-8-one-transparent.png": png(8, 0, [r.tobytes() for r in np.asarray(GREY)], chunk(b"tRNS", b"\0\x14")),
    "rgb-16.png": png(16, 2, [np.stack([r, r * 3, r * 9], -1).astype(">u2").tobytes() for r in sixteen]),
    "rgb-one-transparent.png": png(8, 2, rows, chunk(b"tRNS", b"\0\x0f\0\x14\0\x0a")),
}
for bits in (1, 2, 4):
    values = (x + y) % (1 << bits)
    FILES[f"grey-{bits}.png"] = png(bits, 0, packed(values, bits))
    FILES[f"grey-{bits}-one-transparent.png"] = png(bits, 0, packed(values, bits), chunk(b"tRNS", b"\0\1"))
    FILES[f"palette-{bits}.png"] = png(bits, 3, packed(values, bits), palette[:0] + chunk(b"PLTE", palette[8 : 8 + 3 * (1 << bits)]))
    FILES[f"palette-{bits}-transparent.png"] = png(
        bits, 3, packed(values, bits), chunk(b"PLTE", palette[8 : 8 + 3 * (1 << bits)]), chunk(b"tRNS", b"\x80\0")
    )


def lzw(indices, bits):
    """GIF's compression without a table: a clear code comes before it grows."""
    clear, width, stop, codes = 1 << bits, bits + 1, (1 << bits) - 2, []
    for number, index in enumerate(indices):
        if number % stop == 0:
            codes.append(clear)
        codes.append(index)
    total, length, data = 0, 0, bytearray()
    for code in [*codes, clear + 1]:
        total |= code << length
        length += width
    data = total.to_bytes((length + 7) // 8, "little")
    blocks = b"".join(bytes([len(data[i : i + 255])]) + data[i : i + 255] for i in range(0, len(data), 255))
    return bytes([bits]) + blocks + b"\0"


def gif(screen=(9, 5), shades=b"", ground=0, place=(0, 0, 9, 5), own=b"", transparent=None, interlaced=False, more=b""):
    """A GIF of one frame, perhaps smaller than its screen."""
    size = lambda colours: {6: 0, 12: 1, 24: 2, 48: 3}[len(colours)]
    head = b"GIF89a" + struct.pack("<HHBBB", *screen, 0x80 | size(shades) if shades else 0, ground, 0) + shades
    control = b"" if transparent is None else b"!\xf9\x04" + struct.pack("<BHB", 1, 0, transparent) + b"\0"
    flags = (0x80 | size(own) if own else 0) | (0x40 if interlaced else 0)
    frame = b"," + struct.pack("<HHHHB", *place, flags) + own
    count = place[2] * place[3]
    return head + control + frame + lzw([(i * 5 + i // 7) % 8 for i in range(count)], 3) + more + b";"


shades = bytes(v for i in range(8) for v in (i * 30, 255 - i * 20, i * 7 + 3))
others = bytes(v for i in range(8) for v in (255 - i * 9, i * 31, 90 + i))
own_numbers = bytes(v for i in range(8) for v in (i, i, i))
small = (2, 1, 4, 3)
FILES |= {
    "whole.gif": gif(shades=shades),
    "interlaced.gif": gif((9, 11), shades, place=(0, 0, 9, 11), interlaced=True),
    "offset.gif": gif(shades=shades, ground=5, place=small),
    "offset-transparent.gif": gif(shades=shades, ground=5, place=small, transparent=3),
    "beyond-screen.gif": gif((3, 2), shades, place=small),
    "beyond-screen-transparent.gif": gif((3, 2), shades, place=small, transparent=4),
    "no-screen.gif": gif((0, 0), shades, place=small),
    "own-palette.gif": gif(own=others, place=small),
    "two-palettes.gif": gif(shades=shades, own=others, place=small, ground=6),
    "no-palette.gif": gif(place=small),
    "no-palette-transparent.gif": gif(place=small, transparent=6),
    "own-numbers.gif": gif(shades=own_numbers, place=small, ground=3),
    "own-numbers-over-palette.gif": gif(shades=shades, own=own_numbers, place=small),
    "short-palette.gif": gif(shades=shades[:6], place=small),
    "short-palette-transparent.gif": gif(shades=shades[:12], place=small, transparent=7),
    "second-frame.gif": gif(shades=shades, place=small, more=gif(place=(0, 0, 3, 3))[13:-1]),
}

# TIFF, JPEG, WebP and BMP in forms that writers use.
RGBA = RGB.copy()
RGBA.putalpha(ALPHA)
frames = [RGBA.resize((6, 4)), RGBA.rotate(180).resize((6, 4))]
FILES |= {
    "rgba.tiff": save(RGBA, "TIFF"),
    "packbits.tiff": save(RGB, "TIFF", compression="packbits"),
    "fax.tiff": save(GREY.convert("1"), "TIFF", compression="group4"),
    "grey-16-big.tiff": save(Image.frombytes("I;16B", (W, H), low.tobytes()), "TIFF"),
    "white-is-zero.tiff": save(GREY, "TIFF", tiffinfo={262: 0}),
    "kept-rgb.jpg": save(RGB, "JPEG", quality=95, keep_rgb=True),
    "half-wide.jpg": save(RGB.resize((24, 20)), "JPEG", quality=95, subsampling=1),
    "alpha.webp": save(RGBA, "WEBP", lossless=True, exact=True),
    "animated.webp": save(frames[0], "WEBP", lossless=True, exact=True, save_all=True, append_images=frames[1:]),
    "rgba.bmp": save(RGBA, "BMP"),
}
DIB = struct.pack("<IiiHHIIiiII", 40, W, -H, 1, 24, 0, 0, 0, 0, 0, 0)
pixels = b"".join(COLOURS[row, :, ::-1].tobytes() + b"\0" for row in range(H))
FILES["top-down.bmp"] = b"BM" + struct.pack("<IHHI", 54 + len(pixels), 0, 0, 54) + DIB + pixels
five = ((COLOURS[..., 0].astype("<u2") >> 3) << 10) | ((COLOURS[..., 1].astype("<u2") >> 3) << 5) | (COLOURS[..., 2] >> 3)
DIB = struct.pack("<IiiHHIIiiII", 40, W, -H, 1, 16, 0, 0, 0, 0, 0, 0)
pixels = b"".join(five[row].astype("<u2").tobytes() + b"\0\0" for row in range(H))
FILES["16-bit.bmp"] = b"BM" + struct.pack("<IHHI", 54 + len(pixels), 0, 0, 54) + DIB + pixels

# Notes that are damaged: the picture counts as it is stored.
short = exif(6)
DAMAGED = {
    "damaged-mark.jpg": with_segments(b"Exif\0\0NONE" + short[10:]),
    "damaged-offset.jpg": with_segments(short[:10] + b"\xff\xff\xff\x7f" + short[14:]),
    "damaged-count.jpg": with_segments(short[:14] + b"\xff\xff" + short[16:28]),
    "damaged-empty.jpg": with_segments(b"Exif\0\0"),
    "damaged-cut.jpg": with_segments(short[:11]),
    "damaged-hex.png": png(8, 2, rows, chunk(b"tEXt", b"Raw profile type exif\0\nexif\n 3\nxyz\n")),
    "damaged-packing.png": png(8, 2, rows, chunk(b"zTXt", b"Raw profile type exif\0\0not packed")),
    "damaged-chunk.png": png(8, 2, rows, chunk(b"eXIf", b"\0\1\2")),
}

expected = {}
for name, data in (FILES | DAMAGED).items():
    (HERE / name).write_bytes(data)
    told = lambda image: {"width": image.width, "height": image.height, "rgb": image.tobytes().hex()}
    with Image.open(io.BytesIO(data)) as opened:
        stored = opened.convert("RGB")
    expected[name] = {"stored": told(stored)}
    if name in DAMAGED:
        continue
    with Image.open(io.BytesIO(data)) as opened:
        upright = ImageOps.exif_transpose(opened).convert("RGB")
    if told(upright) != told(stored):
        expected[name]["upright"] = told(upright)
(HERE / "expected.json").write_text(json.dumps(expected, indent=0, separators=(",", ":")) + "\n")

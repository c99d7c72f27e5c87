"""Small pictures in many encodings, and what PIL's `Image.open(...).convert("RGB")` gives for each.

Run: python tests/golden/images.py   (needs Pillow and numpy; made with Pillow 13.0.0)
Writes tests/golden/images/*: one file per encoding, and expected.json with width, height and RGB bytes in hex.
"""

import json
from pathlib import Path

import numpy as np
from PIL import Image

HERE = Path(__file__).parent / "images"
HERE.mkdir(exist_ok=True)
W, H = 11, 7
y, x = np.mgrid[0:H, 0:W]
SMOOTH = np.stack([x * 20 + 15, y * 30 + 20, (x + y) * 12 + 10], axis=-1).astype(np.uint8)
RGB = Image.fromarray(SMOOTH)
ALPHA = Image.fromarray(((x * y * 9) % 256).astype(np.uint8))
RGBA = RGB.copy()
RGBA.putalpha(ALPHA)
GREY = RGB.convert("L")
GREY_ALPHA = Image.merge("LA", (GREY, ALPHA))
PALETTE = RGB.quantize(13, dither=Image.Dither.NONE)
SIXTEEN = Image.fromarray((x * 40 + y * 5).astype(np.uint16))
CMYK = Image.fromarray(np.concatenate([SMOOTH, SMOOTH[..., :1] // 2], axis=-1), "CMYK")
LARGE = RGB.resize((24, 20), Image.Resampling.BICUBIC)
turned = Image.Exif()
turned[0x0112] = 6

CASES = {
    "rgb.png": (RGB, {}),
    "rgba.png": (RGBA, {}),
    "grey.png": (GREY, {}),
    "grey-alpha.png": (GREY_ALPHA, {}),
    "black-white.png": (GREY.convert("1"), {}),
    "palette.png": (PALETTE, {}),
    "palette-4-bits.png": (PALETTE, {"bits": 4}),
    "palette-transparent.png": (PALETTE, {"transparency": 3}),
    "grey-16.png": (SIXTEEN, {}),
    "orientation.png": (RGB, {"exif": turned}),
    "palette.gif": (PALETTE, {}),
    "transparent.gif": (PALETTE, {"transparency": 3}),
    "animated.gif": (PALETTE, {"save_all": True, "append_images": [PALETTE.rotate(180)]}),
    "rgb.bmp": (RGB, {}),
    "palette.bmp": (PALETTE, {}),
    "grey.bmp": (GREY, {}),
    "black-white.bmp": (GREY.convert("1"), {}),
    "rgb.tiff": (RGB, {}),
    "lzw.tiff": (RGB, {"compression": "tiff_lzw"}),
    "deflate.tiff": (RGBA, {"compression": "tiff_adobe_deflate"}),
    "grey.tiff": (GREY, {}),
    "grey-16.tiff": (SIXTEEN, {}),
    "black-white.tiff": (GREY.convert("1"), {}),
    "cmyk.tiff": (CMYK, {}),
    "orientation.tiff": (RGB, {"exif": turned}),
    "lossless.webp": (RGBA, {"lossless": True, "exact": True}),
    "lossy.webp": (LARGE, {"quality": 90}),
    "rgb.jpg": (LARGE, {"quality": 95, "subsampling": 0}),
    "subsampled.jpg": (LARGE, {"quality": 95, "subsampling": 2}),
    "progressive.jpg": (LARGE, {"quality": 95, "progressive": True}),
    "grey.jpg": (LARGE.convert("L"), {"quality": 95}),
    "cmyk.jpg": (CMYK, {"quality": 98}),
    "orientation.jpg": (LARGE, {"quality": 95, "exif": turned}),
}

expected = {}
for name, (image, options) in CASES.items():
    image.save(HERE / name, **options)
    with Image.open(HERE / name) as opened:
        rgb = opened.convert("RGB")
    expected[name] = {"width": rgb.width, "height": rgb.height, "rgb": rgb.tobytes().hex()}
(HERE / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")

"""Checksums of PIL's bicubic resampling, for the table in janus-core/src/processing/resize.rs.

Run: python tests/golden/resize.py   (needs Pillow and numpy; made with Pillow 13.0.0)
"""

import numpy as np
from PIL import Image

# Source width and height, result width and height.
CASES = [
    (64, 37, 32, 18), (75, 110, 21, 32), (200, 30, 32, 14), (1, 1, 5, 7), (1, 9, 3, 4), (9, 1, 4, 3),
    (5, 5, 1, 1), (97, 61, 1, 40), (97, 61, 40, 1), (13, 17, 13, 40), (13, 17, 40, 17), (13, 17, 13, 17),
    (7, 5, 384, 274), (640, 480, 384, 288), (1000, 333, 384, 127), (3, 200, 14, 384), (255, 257, 256, 256),
    (31, 33, 62, 99), (2, 2, 3, 3), (100, 1, 384, 14),
    (110, 330, 127, 384), (300, 900, 128, 384), (49, 25, 35, 6), (12, 26, 5, 11), (13, 56, 7, 41),
]


def picture(width, height):
    x, y, c = np.meshgrid(np.arange(width), np.arange(height), np.arange(3), indexing="xy")
    value = (x * 374761393 + y * 668265263 + c * 2246822519 + x * y * 3266489917) & 0xFFFFFFFF
    value = ((value ^ (value >> 15)) * 2654435761) & 0xFFFFFFFF
    # Noise on the left, hard edges on the right: both ends of the range are overshot.
    noise = value >> 24
    edges = np.where((x // 3 + y // 2 + c) % 2 == 0, 255, 0)
    return np.where(2 * x < width, noise, edges).astype(np.uint8)


def fnv1a(data):
    state = 0xCBF29CE484222325
    for byte in data:
        state = ((state ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return state


for w, h, to_w, to_h in CASES:
    resized = Image.fromarray(picture(w, h), "RGB").resize((to_w, to_h), Image.Resampling.BICUBIC)
    print(f"(({w}, {h}), ({to_w}, {to_h}), 0x{fnv1a(resized.tobytes()):016x}),")

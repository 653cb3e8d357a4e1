"""Writes a short film to the standard output, as Y4M: shapes that move over a landscape, with a camera's noise.

    film.py WIDTH HEIGHT FRAMES
"""

import random
import sys

width, height, frames = map(int, sys.argv[1:])
choose = random.Random(7)
land = [bytes((x * 3 // 4 + y * 2 + (x * y >> 7)) & 0xBF for x in range(2 * width)) for y in range(height)]
grain = [choose.randbytes(width) for _ in range(16)]
# Half of the noise's bits are zero: a look-up is quicker than arithmetic on each sample.
soft = bytes(value & 0x07 for value in range(256))
grain = [row.translate(soft) for row in grain]
shapes = [
    (choose.randrange(width), choose.randrange(height), choose.randint(-9, 9), choose.randint(-5, 5),
     choose.randint(20, height // 3), bytes([choose.randrange(16, 235)]))
    for _ in range(8)
]


def added(row, noise):
    """Adds two rows, sample by sample; neither sum passes a byte."""
    total = int.from_bytes(row, "little") + int.from_bytes(noise, "little")
    return total.to_bytes(len(row) + 1, "little")[:len(row)]


out = sys.stdout.buffer
out.write(b"YUV4MPEG2 W%d H%d F25:1 Ip A1:1 C420jpeg\n" % (width, height))
for frame in range(frames):
    rows = [bytearray(row[frame * 3 % width:][:width]) for row in land]
    for x, y, across, down, size, colour in shapes:
        left = (x + across * frame) % width
        top = (y + down * frame) % height
        for row in rows[top:top + size]:
            end = min(left + size, width)
            row[left:end] = colour * (end - left)
    out.write(b"FRAME\n")
    for y, row in enumerate(rows):
        out.write(added(bytes(row), grain[(y * 7 + frame * 5) % len(grain)]))
    for shift in (0, 40):
        for y in range(height // 2):
            out.write(bytes([(y * 255 // height + shift + frame) & 0xFF]) * (width // 2))

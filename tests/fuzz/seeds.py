"""Writes the fuzz target's first inputs into a folder: containers of every kind of array, made by the encoder.

python tests/fuzz/seeds.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

from slimrun.ops import compress
from tests.compress.arrays import KINDS, grids_by_row, unequal_rows


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {f"{kind}-{n}": make(n) for kind, make in KINDS.items() for n in (1, 63, 200, 5000)}
    arrays |= {"rows": unequal_rows(90), "levels": grids_by_row(6, 1024), "empty": KINDS["w8"](1)[:0]}
    for name, array in arrays.items():
        (folder / name).write_bytes(compress.encode(array, tile_size=4096))


if __name__ == "__main__":
    main()

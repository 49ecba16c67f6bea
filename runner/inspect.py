"""`slimrun-inspect FILE`: bits, entropy, ratio and tiles of each tensor of a run, a bundle, or a file of the codec."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from slimrun.ops import bundle, compress
from slimrun.ops.compress.base import Limited
from slimrun.runner.display import print_anything, print_table
from slimrun.runner.folder import ARTIFACT
from slimrun.runner.status import DONE, WRONG

Found = tuple[str, dict[str, npt.NDArray[np.generic]], npt.NDArray[Any]]

COLUMNS = ["tensor", "shape", "packed bytes", "bits", "entropy", "over", "ratio", "tiles", "model"]
MAP_WIDTH = 64


def main() -> None:
    """Exit status 0 done, 2 the file is not what it has to be (one line on stderr)."""
    print_anything()
    parser = argparse.ArgumentParser(prog="slimrun-inspect", description=__doc__)
    parser.add_argument(
        "file", type=Path, metavar="FILE", help="the folder of a run or bundle, a weight file, or a coded array"
    )
    parser.add_argument("--map", metavar="TENSOR", help="print bits an element of every tile of this tensor")
    arguments = parser.parse_args()
    try:
        show(arguments.file, arguments.map)
    except (ValueError, OSError) as error:
        print(f"slimrun-inspect: {error}", file=sys.stderr)
        sys.exit(WRONG)
    except Exception as error:  # a file that is damaged in a way that has no name
        reason = " ".join(str(error).split())
        print(f"slimrun-inspect: {arguments.file} is damaged ({type(error).__name__}: {reason})", file=sys.stderr)
        sys.exit(WRONG)
    sys.exit(DONE)


def show(path: Path, mapped: str | None) -> None:
    """Print the table, or the tile map of one tensor; ValueError when the file is damaged or no tensor has the name."""
    path = path / ARTIFACT if (path / ARTIFACT).is_dir() else path
    folder = path if path.is_dir() else path.parent
    whole = path.is_dir() or path.suffix in (bundle.SAFETENSORS, bundle.CKPT)
    stored = bundle.undisturbed(folder, bundle.open_stored) if whole else None
    names = []
    rows = []
    weights = 0  # of linears and tables, decoded
    beside: list[int] = []  # bytes of coded steps and biases of quantized weights
    for name, parts, array in tensors(path) if stored is None else tensors_of(stored):
        if stored is not None and name.rpartition(".")[0] in stored.coded:
            beside.append(sum(part.nbytes for part in parts.values()))
            continue
        names.append(name)
        weights += array.size if stored is not None and name in stored.coded else 0
        if mapped is None:
            rows.append(row(name, parts, array))
        elif mapped == name:
            print_map(name, parts)
            return
    if mapped is not None:
        raise ValueError(f"{path} holds no coded tensor {mapped}; the first are: {', '.join(names[:3]) or 'none'}")
    print_table(str(path), COLUMNS, rows)
    if stored is not None:
        if beside:
            print(f"steps and biases of quantized weights, coded: {len(beside)} tensors, {sum(beside):,} bytes")
        size, parameters = stored.weights.stat().st_size, weights + float_parameters(stored)
        print(
            f"{stored.weights.name}: {size:,} bytes, {8 * size / parameters:.3f} bits for each of {parameters:,} "
            f"parameters; all files: {bundle.size(folder):,} bytes"
        )


def float_parameters(stored: bundle.Stored) -> int:
    """Numbers of the float model that are in no quantized weight; steps and grids are none of them."""
    return sum(
        tensor.numel()
        for key, tensor in stored.tensors.items()
        if key.endswith(".bias") or key.rpartition(".")[0] not in stored.coded
    )


def tensors_of(stored: bundle.Stored) -> Iterator[Found]:
    """Every coded tensor of a bundle, as of `tensors`; of floating-point ones the array is their bits."""
    for name, parts in stored.coded.items():
        limited = Limited(sum(part.nbytes for part in parts.values()))
        try:
            yield name, parts, stored.codec.decode(parts, limited)
        except ValueError as error:
            raise bundle.damage(stored.weights, f"{name}: {error}") from error
    for name, packed in stored.numbers.items():
        try:
            tensor = bundle.decode_numbers(packed, Limited(packed.nbytes))
        except ValueError as error:
            raise bundle.damage(stored.weights, f"{name}: {error}") from error
        yield name, {"planes": packed}, compress.floats.bits_of(tensor)[1]


def tensors(path: Path) -> Iterator[Found]:
    """(name, stored parts, decoded array) of a file of the codec; every checksum is verified on the way."""
    packed = np.fromfile(path, np.uint8)
    try:
        sections = compress.split(packed)
        array = compress.decode_sections(*sections, out=Limited(packed.nbytes))
    except ValueError as error:
        raise bundle.damage(path, error) from error
    yield path.name, {"info": sections.info, "index": sections.index, "weight": sections.payload}, array


def row(name: str, parts: dict[str, npt.NDArray[np.generic]], array: npt.NDArray[Any]) -> list[str]:
    """The cells of a tensor; `over` is what all its parts take more than its order-0 entropy."""
    packed = sum(part.nbytes for part in parts.values())
    bits = 8 * packed / max(array.size, 1)
    entropy = compress.entropy_bits(array) if array.dtype == np.int8 else 0.0  # of numbers it says nothing
    over = f"{bits / entropy - 1:+.2%}" if entropy else ""
    shape = "x".join(map(str, array.shape))
    return [
        name,
        shape,
        f"{packed:,}",
        f"{bits:.3f}",
        f"{entropy:.3f}" if array.dtype == np.int8 else "",
        over,
        f"{array.nbytes / packed:.3f}" if packed else "",
        tiles(parts),
        model(parts),
    ]


def tiles(parts: dict[str, npt.NDArray[np.generic]]) -> str:
    """How many tiles of which kind, for our own row-major container."""
    info = container(parts)
    if info is None:
        return ""
    counts = {kind: info.tile_kinds.count(kind) for kind in compress.TILE_KINDS}
    return " ".join(f"{count} {kind}" for kind, count in counts.items() if count)


def model(parts: dict[str, npt.NDArray[np.generic]]) -> str:
    """What the coder's model has besides one table for all, see ops/csrc/model.hpp."""
    info = container(parts)
    if info is None:
        return ""
    features = {
        f"{info.row_classes} row classes": info.row_classes > 1,
        f"{info.column_classes} column classes": info.column_classes > 1,
        "levels by row": info.levels,
        f"{info.low_bits} raw low bits": info.low_bits > 0,
    }
    return ", ".join(text for text, present in features.items() if present)


def print_map(name: str, parts: dict[str, npt.NDArray[np.generic]]) -> None:
    """Bits an element of each tile, row after row; ValueError when the container has no such tiles."""
    info = container(parts)
    if info is None:
        raise ValueError(f"{name} is not in the container {compress.CONTAINER_NAME}: its tiles are not known here")
    print(f"{name}: {info.n_tiles} tiles of {info.tile_size} elements, low bits {info.low_bits}; bits an element:")
    numel = math.prod(info.shape)
    width = max(1, MAP_WIDTH // 6)
    cells = [
        f"{8 * size / min(info.tile_size, numel - tile * info.tile_size):.2f}{'*' if kind == 'raw' else ' '}"
        for tile, (size, kind) in enumerate(zip(info.tile_bytes, info.tile_kinds))
    ]
    for start in range(0, len(cells), width):
        print(f"{start:8d}  {' '.join(cells[start : start + width])}")


def container(parts: dict[str, npt.NDArray[np.generic]]) -> compress.ContainerInfo | None:
    """The header of our own row-major container; None for another one, and for weights that are not coded."""
    if not {"info", "index", "weight"} <= parts.keys() or parts["info"].size <= 5:
        return None
    return compress.inspect(compress.Sections(*(parts[part] for part in ("info", "index", "weight"))))  # type: ignore[arg-type]

"""The reader of .ckpt files: what MindSpore writes, and nothing that a damaged file says of its sizes is believed."""

from __future__ import annotations

import random
import zlib
from pathlib import Path

import pytest
import torch
from torch import Tensor

from slimrun.ops.weights.base import read_tensors

TENSORS = {
    "a.weight": torch.arange(-60, 60, dtype=torch.int8).reshape(10, 12),
    "a.bias": torch.randn(7, generator=torch.Generator().manual_seed(0)),
    "b.scale": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "b.half": torch.tensor([[1.5]], dtype=torch.float16),
    "step": torch.tensor(3, dtype=torch.int64),
    "flags": torch.tensor([True, False]),
}
TYPES = {torch.int8: "Int8", torch.float32: "Float32", torch.bfloat16: "BFloat16", torch.float16: "Float16"}
TYPES |= {torch.int64: "Int64", torch.bool: "Bool"}


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    content = bytearray()
    while value > 127:
        content.append(value & 127 | 128)
        value >>= 7
    return bytes([*content, value])


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def entry(name: str, dims: list[int], kind: str, content: bytes) -> bytes:
    sides = b"".join(varint(1 << 3) + varint(side) for side in dims)
    tensor = sides + field(2, kind.encode()) + field(3, content)
    return field(1, field(1, name.encode()) + field(2, tensor))


def written(tensors: dict[str, Tensor], slices: int = 1) -> bytes:
    file = b""
    for name, tensor in tensors.items():
        content = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
        step = -(-len(content) // slices)
        for start in range(0, len(content), step):
            dims = list(tensor.shape) or [0]
            file += entry(name, dims, TYPES[tensor.dtype], content[start : start + step])
    return file


def read(folder: Path, content: bytes) -> dict[str, Tensor]:
    (folder / "x.ckpt").write_bytes(content)
    return dict(read_tensors(folder / "x.ckpt"))


@pytest.mark.parametrize("slices", [1, 3])
@pytest.mark.parametrize("checksum", [False, True])
def test_tensors_come_back_as_they_are(tmp_path: Path, slices: int, checksum: bool) -> None:
    content = written(TENSORS, slices)
    if checksum:
        content += b"crc_num" + zlib.crc32(content).to_bytes(10, "big")
    tensors = read(tmp_path, content)
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)


@pytest.mark.mindspore
@pytest.mark.usefixtures("with_mindspore")
@pytest.mark.parametrize("crc_check", [False, True])
def test_what_mindspore_writes_is_read_as_mindspore_reads_it(tmp_path: Path, crc_check: bool) -> None:
    import mindspore as ms

    from slimrun.ops.weights.mindspore import from_torch, to_torch

    entries = [{"name": name, "data": from_torch(tensor)} for name, tensor in TENSORS.items()]
    ms.save_checkpoint(entries, str(tmp_path / "x.ckpt"), crc_check=crc_check)
    expected = {name: to_torch(tensor) for name, tensor in ms.load_checkpoint(str(tmp_path / "x.ckpt")).items()}
    tensors = dict(read_tensors(tmp_path / "x.ckpt"))
    assert tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (entry("a", [1], "Int8", b"xx"), r"a: 2 bytes are no Int8 of shape \[1\]"),
        (entry("a", [1 << 62, 4], "Int8", b""), "a: 0 bytes are no Int8"),
        (entry("a", [-2, -1], "Int8", b"xx"), "a: 2 bytes are no Int8"),
        (entry("a", [2], "Int9", b"xx"), "a: the type 'Int9' is not known"),
        (entry("a", [2], "str", b"xx"), "a: the type 'str' is not known"),
        (entry("a", [2], "Bool", b"\1\2"), "a: booleans that are neither 0 nor 1"),
        (entry("a", [1] * 17, "Int8", b"x"), "a: more than 16 dimensions"),
        (entry("a", [2], "Int8", b"xx") + entry("b", [1], "Int8", b"x") + entry("a", [2], "Int8", b"xx"), "a twice"),
        (entry("a", [2], "Int8", b"x") + entry("a", [1], "Int8", b"x"), "a: its slices differ"),
        (entry("a" * 2000, [1], "Int8", b"x"), "a name of 2000 bytes"),
        (entry("a", [1], "Int8", b"x")[:-1], "goes beyond its message"),
        (varint(1 << 3 | 2) + varint(1 << 62), "goes beyond its message"),
        (b"\xff" * 40, "more than 64 bits"),
        (field(1, field(1, b"a")), "expected a name and a tensor"),
        (field(7, b""), "a field 7"),
        (b"\x0b\x0c", "a field of kind 3"),
        (entry("a", [1], "Int8", b"x") + b"crc_num" + bytes(10), "its checksum"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(tmp_path, content)


def test_random_damage_is_refused_or_has_the_size_of_its_bytes(tmp_path: Path) -> None:
    whole = written(TENSORS)
    rng = random.Random(1)
    for _ in range(2000):
        content = bytearray(whole)
        for _ in range(rng.choice((1, 1, 2, 8))):
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        if rng.random() < 0.2:
            del content[rng.randrange(len(content)) :]
        try:
            tensors = read(tmp_path, bytes(content))
        except ValueError:
            continue
        assert sum(tensor.nbytes for tensor in tensors.values()) <= len(content)

"""Codecs to compare with: memcpy, ours on every vector extension, the system's zstd, and what is installed."""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from slimrun.ops import _native, compress

ZSTD_LEVELS = (-5, -1, 1, 3, 9, 19)
ZSTD_LEVEL, ZSTD_LITERALS, HUFFMAN = 100, 1002, 1  # parameters of zstd.h; the second one is experimental there
EXTENSIONS = ("scalar", "avx2", "avx512", "neon")


@dataclass(frozen=True)
class Codec:
    """A way to make bytes of an int8 array and to get it back."""

    name: str
    encode: Callable[[np.ndarray], Any]
    decode: Callable[[Any, np.ndarray], Any]  # (packed, out): fills out, or returns the array where it cannot
    size: Callable[[Any], int] = len


class Zstd:
    """The system's libzstd: one level, literals as it likes or always Huffman coded."""

    library = ctypes.CDLL(ctypes.util.find_library("zstd") or "libzstd.so.1")
    for name in (
        "ZSTD_createCCtx",
        "ZSTD_compress2",
        "ZSTD_decompress",
        "ZSTD_compressBound",
        "ZSTD_CCtx_setParameter",
    ):
        getattr(library, name).restype = ctypes.c_void_p if name == "ZSTD_createCCtx" else ctypes.c_size_t

    def __init__(self, level: int, huffman: bool) -> None:
        self.context = ctypes.c_void_p(self.library.ZSTD_createCCtx())
        settings = {ZSTD_LEVEL: level, **({ZSTD_LITERALS: HUFFMAN} if huffman else {})}
        for key, value in settings.items():
            if self.library.ZSTD_isError(
                ctypes.c_size_t(self.library.ZSTD_CCtx_setParameter(self.context, key, value))
            ):
                raise RuntimeError(f"this libzstd does not know parameter {key}")

    def encode(self, array: np.ndarray) -> np.ndarray:
        out = np.empty(self.library.ZSTD_compressBound(ctypes.c_size_t(array.nbytes)), np.uint8)
        size = self.library.ZSTD_compress2(self.context, *_memory(out), *_memory(array))
        return out[:size]

    def decode(self, packed: np.ndarray, out: np.ndarray) -> None:
        self.library.ZSTD_decompress(*_memory(out), *_memory(packed))


def codecs() -> list[Codec]:
    def ours(threads: int, extension: str = "") -> Codec:
        def on(work: Callable[[], Any]) -> Any:
            os.environ["SLIMRUN_SIMD"] = extension
            return work()

        name = f"slimrun {threads} thread{'s' if threads > 1 else ''} {extension}".strip()
        return Codec(
            name,
            lambda array: on(lambda: compress.encode_sections(array, threads=threads)),
            lambda packed, out: on(lambda: compress.decode_sections(*packed, out=out, threads=threads)),
            size=lambda packed: sum(section.nbytes for section in packed),
        )

    known = [Codec("memcpy", lambda array: array.copy(), lambda packed, out: np.copyto(out, packed)), ours(1), ours(2)]
    known += [ours(1, extension) for extension in _others()]
    for level in ZSTD_LEVELS:
        for huffman in (False, True) if level <= 1 else (False,):  # higher levels choose Huffman codes themselves
            codec = Zstd(level, huffman)
            known.append(Codec(f"zstd {level}{' huffman' if huffman else ''}", codec.encode, codec.decode))
    return [*known, *_installed()]


def _others() -> Iterator[str]:
    """The vector extensions that this processor has besides the one that is taken."""
    os.environ["SLIMRUN_SIMD"] = ""
    best = _native.simd()
    for extension in EXTENSIONS:
        os.environ["SLIMRUN_SIMD"] = extension
        with contextlib.suppress(ValueError):
            if _native.simd() != best:
                yield extension
    os.environ["SLIMRUN_SIMD"] = ""


def _installed() -> Iterator[Codec]:
    """Peers from the package index; a missing one is said, not an error."""
    try:
        import lz4.block

        yield Codec(
            "lz4",
            lambda array: lz4.block.compress(array.tobytes(), store_size=False),
            lambda packed, out: lz4.block.decompress(packed, uncompressed_size=out.nbytes),
        )
    except ImportError:
        print("lz4 is not installed", file=sys.stderr)
    try:
        from zipnn import ZipNN

        zipped = ZipNN(bytearray_dtype="float8_e4m3fn", input_format="byte", threads=1)  # its one-byte kind
        yield Codec(
            "zipnn", lambda array: zipped.compress(array.tobytes()), lambda packed, out: zipped.decompress(packed)
        )
    except ImportError:
        print("zipnn is not installed", file=sys.stderr)
    try:
        import constriction

        yield Codec("constriction", *_constriction(constriction), size=lambda packed: packed[0].nbytes + 4 * 256)
    except ImportError:
        print("constriction is not installed", file=sys.stderr)


def _constriction(library: Any) -> tuple[Callable[[np.ndarray], Any], Callable[[Any, np.ndarray], Any]]:
    """Its ANS coder with the tensor's own histogram; 256 float32 probabilities count as part of the size."""

    def encode(array: np.ndarray) -> Any:
        symbols = array.reshape(-1).view(np.uint8)
        counts = np.bincount(symbols, minlength=256).astype(np.float32)
        model = library.stream.model.Categorical(counts / counts.sum(), perfect=False)
        coder = library.stream.stack.AnsCoder()
        coder.encode_reverse(symbols.astype(np.int32), model)
        return coder.get_compressed(), model, symbols.size

    def decode(packed: Any, out: np.ndarray) -> Any:
        return library.stream.stack.AnsCoder(packed[0]).decode(packed[1], packed[2])

    return encode, decode


def _memory(array: np.ndarray) -> tuple[ctypes.c_void_p, ctypes.c_size_t]:
    return ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes)

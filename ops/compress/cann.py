"""The program `compress_executor` as a codec: CANN's encoder on an Ascend card, or our own behind the same contract.

The contract, eleven arguments and four files, is described in `ops/csrc/executor.hpp`.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from slimrun.ops.scratch import ScratchFolder

from .base import Allocate, Int8Array, Parts, empty, to_nz
from .nz import NZ

SOURCE = Path(__file__).parents[2]  # of CMakeLists.txt, in a checkout and in a wheel
BUILD = f"cmake -S {SOURCE} -B build -DSLIMRUN_PYTHON=OFF && cmake --build build"
ERROR_BYTES, ERROR_LINES = 4096, 5  # of what a failing program printed


@dataclass(frozen=True)
class Cann:
    """Codes a matrix by running `executor` on it; the tensors are those of `NZ`."""

    parts: ClassVar[tuple[str, ...]] = NZ.parts

    executor: str = "build/compress_executor"
    timeout_s: int = 600

    def __post_init__(self) -> None:
        """Validate; ValueError names the key, the value and the range."""
        if self.timeout_s < 1:
            raise ValueError(f"timeout_s={self.timeout_s} is out of range; allowed: 1 or more seconds")

    @property
    def container(self) -> str:
        """What the program writes: "slimrun-nz" or "ascend"."""
        return self._answer[0]

    @property
    def version(self) -> int:
        """Version of the container format."""
        return self._answer[1]

    def encode(self, weight: Int8Array) -> Parts:
        """Code an int8 matrix [n, k]; ValueError says why the program or its files are no good."""
        fractals = to_nz(weight)
        n, k = weight.shape
        k1, n1 = fractals.shape[:2]
        with ScratchFolder("slimrun-cann") as folder:
            files = [folder / f"{part}.bin" for part in ("in", "out", "index", "info")]
            fractals.tofile(files[0])
            tight, k_value, n_value, compress_type, tiling = 1, 1, 1, 0, 0
            numbers = (k1, n1, tight, k_value, n_value, compress_type, tiling)
            status, printed = self._run([*map(str, numbers), *map(str, files)], folder)
            if status != 0:
                raise ValueError(f"compress.executor={self.executor} failed with exit status {status}: {printed}")
            payload, index, tiling_k, tiling_n = self._outputs(files[1:], k1, n1)
        return {"weight": payload, "index": index, "info": np.array([tiling_k, tiling_n, k, n, 1], np.int64)}

    def decode(self, parts: Mapping[str, npt.NDArray[np.generic]], allocate: Allocate = empty) -> Int8Array:
        """The matrix again, if the container is ours; ValueError otherwise, and when it is malformed."""
        if self.container != NZ.container:
            raise ValueError(f"container {self.container} {self.version}: only the Ascend hardware decodes it")
        return NZ().decode(parts, allocate)

    @cached_property
    def _answer(self) -> tuple[str, int]:
        """Name and version of the container; a program that does not say is the vendor's."""
        with ScratchFolder("slimrun-cann") as folder:
            status, printed = self._run(["--container"], folder)
        answer = re.fullmatch(r"([a-z][a-z0-9-]*) ([0-9]{1,9})", printed)
        return (answer[1], int(answer[2])) if status == 0 and answer else ("ascend", 1)

    def _run(self, arguments: list[str], folder: Path) -> tuple[int, str]:
        """Exit status and the last lines printed. Whatever the program leaves in its folder goes with the folder."""
        program = Path(self.executor).expanduser().absolute()
        if not program.is_file() or not os.access(program, os.X_OK):
            why = "is not executable" if program.is_file() else "does not exist"
            raise ValueError(f"compress.executor={self.executor} {why}; build it: {BUILD}")
        with (folder / "printed").open("w+b") as printed:
            try:  # a session of its own: a time limit ends what the program has started as well
                process = subprocess.Popen(
                    [program, *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=printed,
                    stderr=subprocess.STDOUT,
                    cwd=folder,
                    start_new_session=True,
                )
            except OSError as error:
                raise ValueError(f"compress.executor={self.executor} does not start: {error.strerror}") from error
            try:
                status = process.wait(self.timeout_s)
            except subprocess.TimeoutExpired:
                limit = f"compress.timeout_s={self.timeout_s}"
                raise ValueError(f"{limit}: {self.executor} was not done by then and has been ended") from None
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
            printed.seek(max(0, printed.seek(0, os.SEEK_END) - ERROR_BYTES))
            lines = printed.read().decode(errors="replace").split("\n")
        last = [line.strip() for line in lines if line.strip()][-ERROR_LINES:]
        return status, " | ".join(last) or "it printed nothing"

    def _outputs(self, files: list[Path], k1: int, n1: int) -> tuple[Int8Array, Int8Array, int, int]:
        """Payload, index, tiling_k and tiling_n of the three files, whose sizes must belong together."""
        wrong = f"compress.executor={self.executor}"
        for file in files:
            if not file.is_file():
                raise ValueError(f"{wrong} ended without an error but wrote no {file.name}")
        out, index, info = files
        if info.stat().st_size != 12:
            raise ValueError(f"{wrong} wrote an info.bin of {info.stat().st_size} bytes, expected 12")
        tiling_n, tiling_k, length = np.fromfile(info, "<u4").tolist()
        if tiling_n < 1 or tiling_k < 1:
            raise ValueError(f"{wrong} wrote tiles of {tiling_n} x {tiling_k} fractals, expected at least 1 x 1")
        index_bytes = 8 * -(-k1 // tiling_k) * -(-n1 // tiling_n)
        if index.stat().st_size != index_bytes:
            raise ValueError(f"{wrong} wrote an index.bin of {index.stat().st_size} bytes, expected {index_bytes}")
        if not 1 <= length <= out.stat().st_size:
            raise ValueError(f"{wrong} wrote an out.bin of {out.stat().st_size} bytes, but info.bin says {length}")
        return np.fromfile(out, np.int8, length), np.fromfile(index, np.int8), tiling_k, tiling_n

"""Makes golden.json: what the formulas of msModelSlim's formats give, stated in numpy and nothing else.

    python tests/quant/golden/make_golden.py > tests/quant/golden/golden.json

Each case is one linear with bias in a model of some dtype, calibrated (mean of each batch's extremes) on three
batches. A case records short sha256 digests of the tensors of the saved file. deq_scale is formed in float32 from the
stored input_scale; the original forms it in float16 for float16 models, which is up to 2 % off and not followed.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

DTYPES = ("float32", "float16", "bfloat16")
REAL = ("model.layers.0.self_attn.q_proj", "model.layers.10.mlp.gate_proj", "model.layers.20.mlp.down_proj")
SOURCES = ("gaussian", "outliers", "zero_row", *REAL)
EPSILON = np.float32(1.1920929e-07)


def methods() -> Iterator[dict[str, object]]:
    for mm_tensor in (False, True):
        for fraction in (0.01, 0.011, 0.03, 0.1):
            yield {"method": "co_sparse", "fraction": fraction, "mm_tensor": mm_tensor}
        for fraction in (0.011, 0.1):
            yield {"method": "lowbit", "fraction": fraction, "mm_tensor": mm_tensor}
        for sigma in (3.0, 4.0):
            yield {"method": "lowbit", "use_sigma": True, "sigma_factor": sigma, "mm_tensor": mm_tensor}
        yield {"method": "lowbit", "open_outlier": False, "mm_tensor": mm_tensor}
        yield {"method": "w8a8", "mm_tensor": mm_tensor}


def rounded(x: np.ndarray, dtype: str) -> np.ndarray:
    """float32 values that the dtype can hold (round to nearest even)."""
    x = np.asarray(x, dtype=np.float32)
    if dtype == "float16":
        return x.astype(np.float16).astype(np.float32)
    if dtype == "bfloat16":
        bits = x.view(np.uint32).astype(np.uint64)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16).astype(np.uint32).view(np.float32)
    return x


def weight(source: str) -> np.ndarray:
    """float32 [n, k]."""
    if source in REAL:
        return read_safetensors(model_file(), f"{source}.weight")
    rng = np.random.default_rng(SOURCES.index(source))
    w = (0.02 * rng.standard_normal((48, 160))).astype(np.float32)
    if source == "outliers":
        w[rng.integers(0, 48, 30), rng.integers(0, 160, 30)] *= 25
        w[7] *= 10
    if source == "zero_row":
        w[5] = 0
    return w


def bias(source: str, rows: int) -> np.ndarray:
    return np.random.default_rng(100 + SOURCES.index(source)).standard_normal(rows).astype(np.float32)


def batches(source: str, columns: int) -> list[np.ndarray]:
    """Three calibration inputs [4, k] with a shifted mean and one heavy channel."""
    rng = np.random.default_rng(200 + SOURCES.index(source))
    inputs = []
    for _ in range(3):
        x = rng.standard_normal((4, columns)) + 0.3
        x[:, 3] *= 12
        inputs.append(x.astype(np.float32))
    return inputs


def step(w: np.ndarray, case: dict[str, object]) -> tuple[np.ndarray, int, int]:
    """(step of each row or of the tensor [n or 1, 1], lowest and highest integer)."""
    size = np.abs(w)
    per_tensor = bool(case["mm_tensor"])
    if case["method"] == "w8a8":
        top = size.max(axis=1, keepdims=True)
        top = top.max(keepdims=True) if per_tensor else top
        # a zero row may have any step; ours is the tensor's
        return np.where(top > 0, top, top.max()) / np.float32(127), -127, 127
    if case["method"] == "co_sparse":
        threshold = np.sort(size, axis=None)[::-1][int(float(case["fraction"]) * w.size) - 1]
        normal = np.where(size <= threshold, size, 0).max(axis=1, keepdims=True)
        if per_tensor:
            normal = np.full((1, 1), threshold, dtype=np.float32)
        # a zero row has no step in the formula; ours is T / 7, its integers are zero with any
        return np.where(normal > 0, normal, threshold) / np.float32(7), -127, 127
    if case.get("open_outlier") is False:
        normal, low, high = size.max(axis=1, keepdims=True), -7, 7
    else:
        low, high = -128, 127
        if case.get("use_sigma"):
            limit = float(case["sigma_factor"]) * size.astype(np.float64).std(axis=1, ddof=1, keepdims=True)
        else:
            count = int(float(case["fraction"]) * w.shape[1])
            limit = np.sort(size, axis=1)[:, ::-1][:, count - 1 : count]
        normal = np.where(size <= limit, size, 0).max(axis=1, keepdims=True)
    if per_tensor:
        normal = normal.max(keepdims=True)
    return np.where(normal > 0, normal, normal.max()) / np.float32(7), low, high


def quantized(source: str, dtype: str, case: dict[str, object]) -> dict[str, np.ndarray]:
    """The tensors of the saved file; deq_scale as float32."""
    w = rounded(weight(source), dtype)
    s, low, high = step(w, case)
    s = s.astype(np.float32)
    q = np.clip(np.rint(w / s), low, high).astype(np.int8)
    seen = [rounded(x, dtype) for x in batches(source, w.shape[1])]
    lowest = min(np.float32(np.mean([float(x.min()) for x in seen])), np.float32(0))
    highest = max(np.float32(np.mean([float(x.max()) for x in seen])), np.float32(0))
    exact = max((highest - lowest) / np.float32(255), EPSILON)
    offset = int(np.rint(-lowest / exact)) - 128
    scale = rounded(exact, dtype)
    deq = (scale * s).astype(np.float32).reshape(-1)
    b = rounded(bias(source, w.shape[0]), dtype).astype(np.float64)
    quant_bias = np.rint(b / deq.astype(np.float64) - offset * q.sum(axis=1, dtype=np.int64)).astype(np.int32)
    return {
        "weight": q,
        "input_scale": np.array([scale], dtype=np.float32),
        "input_offset": np.array([offset], dtype=np.float32),
        "quant_bias": quant_bias,
        "deq_scale": deq,
    }


def digest(x: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(x).tobytes()).hexdigest()[:16]


def name(source: str, dtype: str, case: dict[str, object]) -> str:
    return " ".join([source, dtype, *(f"{key}={value}" for key, value in case.items())])


def model_file() -> Path:
    cache = Path(os.environ.get("SLIMRUN_CACHE", "~/.cache/slimrun")).expanduser()
    return next((cache / "models" / "smollm2-135m-instruct").glob("*.safetensors"))


def read_safetensors(path: Path, key: str) -> np.ndarray:
    with path.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        entry = json.loads(stream.read(length))[key]
        assert entry["dtype"] == "F32"
        start, end = entry["data_offsets"]
        stream.seek(8 + length + start)
        return np.frombuffer(stream.read(end - start), dtype=np.float32).reshape(entry["shape"])


def main() -> None:
    table = {
        name(source, dtype, case): {key: digest(x) for key, x in quantized(source, dtype, case).items()}
        for source in SOURCES
        for dtype in DTYPES
        for case in methods()
    }
    json.dump(table, sys.stdout, indent=0)
    print()


if __name__ == "__main__":
    main()

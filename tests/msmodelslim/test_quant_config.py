"""msModelSlim's QuantConfig: which method each combination of keywords is, and what is refused how."""

from __future__ import annotations

import logging
import re

import pytest

from slimrun.msmodelslim.pytorch import QuantConfig
from slimrun.ops.quant.lowbit import Lowbit
from slimrun.ops.quant.none import NoQuantization
from slimrun.ops.quant.w8a8 import W8A8
from slimrun.ops.quant.w8a8_dynamic import W8A8Dynamic
from slimrun.ops.quant.w8a8s import W8A8S
from slimrun.ops.quant.w8a16 import W8A16

POSITIONAL = [
    "w_bit",
    "a_bit",
    "act_method",
    "w_method",
    "disable_names",
    "pr",
    "mm_tensor",
    "dev_type",
    "dev_id",
    "fraction",
    "nonuniform",
    "co_sparse",
    "w_sym",
    "is_lowbit",
    "do_smooth",
    "use_sigma",
    "sigma_factor",
    "disable_last_linear",
    "use_kvcache_quant",
    "open_outlier",
    "is_dynamic",
    "group_size",
    "percdamp",
    "pdmix",
]


def test_keywords_stand_in_the_original_order_with_its_defaults() -> None:
    assert list(QuantConfig.__dataclass_fields__) == POSITIONAL
    values = [8, 8, 1, "MinMax", None, 1.0, True, "cpu", None, 0.01, False, False, True, False, False, False, 3.0, True]
    assert QuantConfig(*values) == QuantConfig()


@pytest.mark.parametrize(
    ("keywords", "method"),
    [
        (
            {"w_bit": 4, "co_sparse": True, "act_method": 3, "fraction": 0.011, "mm_tensor": False, "pr": 2.0},
            W8A8S(fraction=0.011, observer="auto"),
        ),
        (
            {"co_sparse": True, "disable_names": ["a.b"]},
            W8A8S(fraction=0.01, per_channel=False, observer="minmax", ignore=["a.b"]),
        ),
        (
            {"w_bit": 4, "is_lowbit": True, "act_method": 2},
            Lowbit(fraction=0.01, per_channel=False, observer="histogram"),
        ),
        (
            {"w_bit": 4, "is_lowbit": True, "use_sigma": True, "sigma_factor": 3.5, "do_smooth": True},
            Lowbit(
                fraction=0.01, per_channel=False, use_sigma=True, sigma_factor=3.5, do_smooth=True, observer="minmax"
            ),
        ),
        (
            {"w_bit": 4, "is_lowbit": True, "open_outlier": False},
            Lowbit(fraction=0.01, per_channel=False, open_outlier=False, observer="minmax"),
        ),
        ({"mm_tensor": False, "disable_last_linear": False}, W8A8(ignore_last_linear=False, observer="minmax")),
        ({"is_dynamic": True}, W8A8Dynamic(per_channel=False)),
        ({"a_bit": 16, "mm_tensor": False}, W8A16()),
        ({"w_bit": 16, "a_bit": 16}, NoQuantization()),
    ],
    ids=str,
)
def test_methods(keywords: dict[str, object], method: object) -> None:
    assert QuantConfig(**keywords).quantizer() == method  # type: ignore[arg-type]


def test_chains() -> None:
    sparse = QuantConfig(w_bit=4, dev_type="cpu", mm_tensor=False).sparse_quant(act_method=2, fraction=0.03)
    assert sparse.quantizer() == W8A8S(fraction=0.03, observer="histogram")
    lowbit = QuantConfig().sparse_quant(1, 0.02, False, True, True)
    assert lowbit.quantizer() == Lowbit(fraction=0.02, per_channel=False, do_smooth=True, observer="minmax")
    assert QuantConfig().weight_activation_quant(3, is_dynamic=False).quantizer() == W8A8(per_channel=False)
    assert QuantConfig().weight_quant(mm_tensor=False).quantizer() == W8A16()
    config = QuantConfig(w_bit=4)
    assert config.sparse_quant() is config


@pytest.mark.parametrize(
    ("keywords", "warning"),
    [
        ({"co_sparse": True, "w_bit": 4, "pr": 2.0}, "pr=2.0 has no effect"),
        ({"co_sparse": True, "is_lowbit": True, "w_bit": 4}, "co_sparse=True has no effect: is_lowbit=True wins"),
        ({"co_sparse": True}, "w_bit=8, a_bit=8 become 4 and 8"),
        ({"is_lowbit": True}, "is_lowbit=True has no effect with w_bit=8"),
        ({"do_smooth": True}, "do_smooth=True has no effect without is_lowbit=True"),
        ({"do_smooth": True, "is_lowbit": True}, "do_smooth=True has no effect without is_lowbit=True, w_bit=4"),
        ({"group_size": 128}, "group_size=128 has no effect"),
        ({"a_bit": 16, "is_lowbit": True, "open_outlier": False}, "nor steps by group are built"),
        ({"a_bit": 16, "is_lowbit": True, "open_outlier": False}, "open_outlier=False has no effect"),
    ],
    ids=str,
)
def test_what_the_original_changes_silently_is_a_warning(
    keywords: dict[str, object], warning: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        QuantConfig(**keywords)  # type: ignore[arg-type]
    assert warning in caplog.text


def test_plain_configurations_warn_of_nothing(caplog: pytest.LogCaptureFixture) -> None:
    QuantConfig(w_bit=4, co_sparse=True, fraction=0.02)
    QuantConfig(w_bit=4, is_lowbit=True, use_sigma=True)
    QuantConfig(a_bit=16)
    assert not caplog.text


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({"w_bit": 8.0}, TypeError, "w_bit must be int, not float."),
        ({"w_bit": True}, TypeError, "w_bit must be int, not bool."),
        ({"fraction": 1}, TypeError, "fraction must be float, not int."),
        ({"sigma_factor": 3}, TypeError, "sigma_factor must be float, not int."),
        ({"mm_tensor": 1}, TypeError, "mm_tensor must be bool, not int."),
        ({"disable_names": "lm_head"}, TypeError, "disable_names must be list, not str."),
        ({"disable_names": [1]}, TypeError, "Element in disable_names is invalid. Should be all str"),
        ({"dev_id": "0"}, TypeError, "dev_id must be int, not str."),
        ({"fracton": 0.01}, TypeError, "unexpected keyword argument 'fracton'"),
        ({"a_bit": 8, "w_sym": False}, TypeError, "w_sym should be True when a_bit = 8"),
        ({"act_method": 0}, ValueError, "act_method = 0 is smaller than 1."),
        ({"act_method": 4}, ValueError, "act_method = 4 is larger than 3."),
        ({"act_method": 3, "is_lowbit": True}, ValueError, "act_method can not be 3 when running lowbit"),
        ({"fraction": 0.2}, ValueError, "fraction = 0.2 is larger than 0.1."),
        ({"fraction": 0.001}, ValueError, "fraction = 0.001 is smaller than 0.01."),
        ({"sigma_factor": 4.5}, ValueError, "sigma_factor = 4.5 is larger than 4.0."),
        ({"w_bit": 4, "is_lowbit": True, "pr": 2.0}, ValueError, "pr = 2.0 is larger than 1.0."),
        ({"dev_type": "tpu"}, ValueError, "Device type must be in choices [cpu, npu, gpu]"),
        ({"group_size": 65}, ValueError, "group_size = 65 is invalid; allowed: 32, 64, 128, 256"),
        ({"percdamp": 2.0}, ValueError, "percdamp = 2.0 is larger than 1.0."),
        ({"nonuniform": True, "co_sparse": True}, ValueError, "nonuniform = True is refused: the saved format"),
        ({"use_kvcache_quant": True}, ValueError, "use_kvcache_quant = True is not built; allowed: False"),
        ({"w_method": "GPTQ"}, ValueError, "w_method = GPTQ is not built; allowed: MinMax"),
        ({"pdmix": True}, ValueError, "pdmix = True is not built"),
        ({"is_dynamic": True, "co_sparse": True}, ValueError, "is_dynamic = True is not built for sparse weights"),
    ],
    ids=str,
)
def test_wrong_keywords(keywords: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        QuantConfig(**keywords)  # type: ignore[arg-type]


def test_wrong_chains() -> None:
    with pytest.raises(
        ValueError, match=r"w_bit = 4 with a_bit = 8 is not built; allowed: w_bit=4 with co_sparse=True"
    ):
        QuantConfig(w_bit=4).quantizer()
    with pytest.raises(TypeError, match=r"sparse_quant\(\) has no keyword w_sym; allowed: act_method, fraction"):
        QuantConfig().sparse_quant(w_sym=True)
    with pytest.raises(TypeError, match=r"sparse_quant\(\) got act_method twice"):
        QuantConfig().sparse_quant(1, act_method=2)
    for scenario in ("kv_quant", "fa_quant", "timestep_quant", "simulate_tp"):
        with pytest.raises(ValueError, match=f"{scenario} is not built"):
            getattr(QuantConfig(), scenario)()

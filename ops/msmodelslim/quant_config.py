"""msModelSlim's QuantConfig: every keyword, and which method of `slimrun.ops.quant` it names."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from slimrun.msmodelslim.checks import DEVICES, check_range, check_type, named
from slimrun.ops.quant.base import Quantizer
from slimrun.ops.quant.lowbit import Lowbit
from slimrun.ops.quant.none import NoQuantization
from slimrun.ops.quant.w8a8 import W8A8
from slimrun.ops.quant.w8a8_dynamic import W8A8Dynamic
from slimrun.ops.quant.w8a8s import W8A8S
from slimrun.ops.quant.w8a16 import W8A16

log = logging.getLogger(__name__)

OBSERVERS = {1: "minmax", 2: "histogram", 3: "auto"}
GROUP_SIZES = (32, 64, 128, 256)
NOT_BUILT = {"use_kvcache_quant": False, "pdmix": False, "w_method": "MinMax"}  # and the one value that is
NO_EFFECT = {"percdamp": 0.01, "group_size": 64}  # knobs of methods that are not built
OF_LOWBIT = {"do_smooth": False, "use_sigma": False, "open_outlier": True}  # and the values that ask for nothing
OPTIONAL: dict[str, type] = {"disable_names": list, "dev_id": int}


@dataclass
class QuantConfig:
    """Keywords, order and defaults of msModelSlim's QuantConfig; TypeError or ValueError on a wrong one.

    `w_bit=4, co_sparse=True` is `quant=w8a8s`, `w_bit=4, is_lowbit=True` is `quant=lowbit`, 8 and 8 is `quant=w8a8`
    (`is_dynamic=True`: `quant=w8a8_dynamic`), 8 and 16 is `quant=w8a16`, 16 and 16 is `quant=none`.
    """

    w_bit: int = 8
    a_bit: int = 8
    act_method: int = 1
    w_method: str = "MinMax"
    disable_names: list[str] | None = None
    pr: float = 1.0
    mm_tensor: bool = True
    dev_type: str = "cpu"
    dev_id: int | None = None
    fraction: float = 0.01
    nonuniform: bool = False
    co_sparse: bool = False
    w_sym: bool = True
    is_lowbit: bool = False
    do_smooth: bool = False
    use_sigma: bool = False
    sigma_factor: float = 3.0
    disable_last_linear: bool = True
    use_kvcache_quant: bool = False
    open_outlier: bool = True
    is_dynamic: bool = False
    group_size: int = 64
    percdamp: float = 0.01
    pdmix: bool = False

    def __post_init__(self) -> None:
        """Check types and ranges, then what the keywords say together."""
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name not in OPTIONAL or value is not None:
                check_type(field.name, value, OPTIONAL.get(field.name, type(field.default)))
        check_range("act_method", self.act_method, 1, 3)
        check_range("fraction", self.fraction, 0.01, 0.1)
        check_range("sigma_factor", self.sigma_factor, 3.0, 4.0)
        check_range("percdamp", self.percdamp, 0.0, 1.0)
        if not all(isinstance(name, str) for name in self.disable_names or []):
            raise TypeError(f"Element in disable_names is invalid. Should be all str, got {self.disable_names}.")
        if self.dev_type not in DEVICES:
            raise ValueError(f"dev_type = {self.dev_type}: Device type must be in choices [{', '.join(DEVICES)}].")
        if self.group_size not in GROUP_SIZES:
            raise ValueError(f"group_size = {self.group_size} is invalid; allowed: {', '.join(map(str, GROUP_SIZES))}.")
        for name, built in NOT_BUILT.items():
            if getattr(self, name) != built:
                raise ValueError(f"{name} = {getattr(self, name)} is not built; allowed: {built}.")
        if self.nonuniform:
            raise ValueError(
                "nonuniform = True is refused: the saved format has no place for its exponent, so the device would "
                "compute something else than the calibrated model; allowed: False."
            )
        self._check_together()

    def quantizer(self, disable_level: str = "L0") -> Quantizer:
        """The method of `slimrun.ops.quant` that these keywords name; ValueError when there is none.

        disable_level "Lk" keeps k linears float.
        """
        if not isinstance(disable_level, str) or not re.fullmatch(r"L(0|[1-9]\d*)", disable_level):
            raise ValueError(
                f"Please check the `disable_level` configuration: {disable_level!r}; allowed: 'L0', 'L1', ..."
            )
        method = _method(self)
        return type(method)(**{**vars(method), "fallback_level": int(disable_level[1:])})

    def weight_quant(self, **keywords: Any) -> QuantConfig:
        """Weights alone: a_bit becomes 16. Takes w_method, w_sym, mm_tensor, group_size, percdamp."""
        allowed = ("w_method", "w_sym", "mm_tensor", "group_size", "percdamp")
        return self._set("weight_quant", allowed, {"a_bit": 16, **keywords})

    def weight_activation_quant(self, *values: Any, **keywords: Any) -> QuantConfig:
        """Weights and activations. Takes act_method, pr, is_dynamic, in that order."""
        allowed = ("act_method", "pr", "is_dynamic")
        return self._set(
            "weight_activation_quant", allowed, named("weight_activation_quant", allowed, values, keywords)
        )

    def sparse_quant(self, *values: Any, **keywords: Any) -> QuantConfig:
        """Sparse quantization: co_sparse, or lowbit with is_lowbit=True; w_bit becomes 4.

        Takes act_method, fraction, nonuniform, is_lowbit, do_smooth, use_sigma, sigma_factor, in that order.
        """
        allowed = ("act_method", "fraction", "nonuniform", "is_lowbit", "do_smooth", "use_sigma", "sigma_factor")
        arguments = named("sparse_quant", allowed, values, keywords)
        lowbit = bool(arguments.get("is_lowbit", self.is_lowbit))
        return self._set("sparse_quant", allowed, {"w_bit": 4, "co_sparse": not lowbit, **arguments})

    def kv_quant(self, *_: Any, **__: Any) -> QuantConfig:
        """ValueError: this is not built."""
        raise ValueError("kv_quant is not built: the key-value cache stays float.")

    def fa_quant(self, *_: Any, **__: Any) -> QuantConfig:
        """ValueError: this is not built."""
        raise ValueError("fa_quant is not built: attention stays float.")

    def timestep_quant(self, *_: Any, **__: Any) -> QuantConfig:
        """ValueError: this is not built."""
        raise ValueError("timestep_quant is not built: it is for diffusion models.")

    def simulate_tp(self, *_: Any, **__: Any) -> QuantConfig:
        """ValueError: this is not built."""
        raise ValueError("simulate_tp is not built: there is no tensor-parallel calibration.")

    @property
    def sparse_lowbit(self) -> bool:
        """Whether the method is lowbit, which 4 and 8 bits alone have."""
        return self.is_lowbit and self.w_bit == 4 and self.a_bit == 8

    def _check_together(self) -> None:
        """What the original changes silently is a warning here, what contradicts itself an error."""
        if self.is_lowbit and self.act_method == 3:
            raise ValueError("act_method can not be 3 when running lowbit; allowed: 1, 2.")
        if self.co_sparse and self.is_lowbit:
            log.warning("co_sparse=True has no effect: is_lowbit=True wins")
            self.co_sparse = False
        if self.co_sparse and (self.w_bit, self.a_bit) != (4, 8):
            log.warning("w_bit=%d, a_bit=%d become 4 and 8: co_sparse=True has no others", self.w_bit, self.a_bit)
            self.w_bit, self.a_bit = 4, 8
        if self.a_bit == 8 and not self.w_sym:
            raise TypeError("w_sym should be True when a_bit = 8, please check it.")
        if self.is_dynamic and (self.co_sparse or self.sparse_lowbit):
            raise ValueError("is_dynamic = True is not built for sparse weights (W4A8_DYNAMIC); allowed: False.")
        if self.sparse_lowbit:
            check_range("pr", self.pr, 0.0, 1.0)
        _say_what_has_no_effect(self)

    def _set(self, method: str, allowed: Sequence[str], values: Mapping[str, Any]) -> QuantConfig:
        unknown = [name for name in values if name not in (*allowed, "a_bit", "w_bit", "co_sparse")]
        if unknown:
            raise TypeError(f"{method}() has no keyword {unknown[0]}; allowed: {', '.join(allowed)}.")
        for name, value in values.items():
            if name in ("w_bit", "a_bit") and getattr(self, name) != value:
                log.warning("%s=%d becomes %d: %s() asks for it", name, getattr(self, name), value, method)
            setattr(self, name, value)
        self.__post_init__()
        return self


def _method(config: QuantConfig) -> Quantizer:
    shared: dict[str, Any] = {
        "ignore": list(config.disable_names or []),
        "ignore_last_linear": config.disable_last_linear,
        "per_channel": not config.mm_tensor,
    }
    static = shared | {"observer": OBSERVERS[config.act_method]}
    if config.co_sparse:
        return W8A8S(**static, fraction=config.fraction)
    if config.sparse_lowbit:
        return Lowbit(
            **static,
            fraction=config.fraction,
            use_sigma=config.use_sigma,
            sigma_factor=config.sigma_factor,
            open_outlier=config.open_outlier,
            do_smooth=config.do_smooth,
        )
    if (config.w_bit, config.a_bit) == (8, 8):
        return W8A8Dynamic(**shared) if config.is_dynamic else W8A8(**static)
    if (config.w_bit, config.a_bit) == (8, 16):
        return W8A16(**shared)
    if (config.w_bit, config.a_bit) == (16, 16):
        return NoQuantization()
    raise ValueError(
        f"w_bit = {config.w_bit} with a_bit = {config.a_bit} is not built; allowed: w_bit=4 with co_sparse=True or "
        "is_lowbit=True (sparse), w_bit=8 with a_bit=8 or 16, w_bit=16 with a_bit=16 (float)."
    )


def _say_what_has_no_effect(config: QuantConfig) -> None:
    if config.pr != 1.0:
        log.warning("pr=%s has no effect: calibration always quantizes every activation (pr=1.0)", config.pr)
    for name, neutral in NO_EFFECT.items():
        if getattr(config, name) != neutral:
            log.warning("%s=%s has no effect with this method", name, getattr(config, name))
    if config.is_lowbit and not config.sparse_lowbit:
        log.warning(
            "is_lowbit=True has no effect with w_bit=%d, a_bit=%d: sparse is 4, 8, and neither tuning nor steps "
            "by group are built",
            config.w_bit,
            config.a_bit,
        )
    for name, neutral in {} if config.sparse_lowbit else OF_LOWBIT.items():
        if getattr(config, name) != neutral:
            wanted = "is_lowbit=True, w_bit=4, a_bit=8"
            log.warning("%s=%s has no effect without %s", name, getattr(config, name), wanted)

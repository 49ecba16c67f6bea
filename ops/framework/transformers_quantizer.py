"""`AutoModelForCausalLM.from_pretrained(BUNDLE)`: what transformers does not know of a bundle, in its own words.

A bundle's config.json names this quantizer, so engines that do not have it refuse the bundle by name. transformers
finds no file that it would load either: the weight file is named to it here alone, and none of its tensors is taken
from it. They come from the bundle's own reader, which decodes and checks them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from slimrun.ops.bundle.description import QUANT_METHOD, SAFETENSORS, read_object, weight_file
from slimrun.ops.bundle.references import CONFIG
from slimrun.ops.framework.base import DEVICE_MAPS


@register_quantization_config(QUANT_METHOD)
class BundleConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """`quantization_config` in a bundle's config.json."""

    def __init__(self, quant_method: str = QUANT_METHOD) -> None:
        self.quant_method = quant_method


@register_quantizer(QUANT_METHOD)
class BundleQuantizer(HfQuantizer):  # type: ignore[misc]
    """Fills a model of transformers from a bundle. Only bundles are read; a float model is quantized by a run."""

    requires_calibration = True

    def __init__(self, quantization_config: BundleConfig, **options: Any) -> None:
        super().__init__(quantization_config, **options)
        self._weights: Path
        self._any_key: str  # of the model
        self._device = torch.device("cpu")

    def update_device_map(self, device_map: Any) -> Any:
        """The one device where the model goes; ValueError for several."""
        places = set(device_map.values()) if isinstance(device_map, dict) else {device_map}
        place = places.pop()
        if places or place in (*DEVICE_MAPS, "disk"):
            raise ValueError(
                f"device_map={device_map}: a bundle is loaded onto one device; give its name, such as cuda:0"
            )
        self._device = torch.device("cpu" if place is None else place)
        return None

    def update_attn_implementation(self, config: Any) -> Any:
        """Name the weight file, while the config is not yet the model's; ValueError when it cannot be read so."""
        folder = Path(config.name_or_path)
        if not folder.is_dir():
            raise ValueError(f"{folder} is no folder; a bundle is loaded from one: huggingface_hub.snapshot_download")
        self._weights = weight_file(folder)
        if self._weights.suffix != SAFETENSORS:
            raise ValueError(f"{self._weights}: transformers reads {SAFETENSORS}; slimrun.load_bundle reads this one")
        config.transformers_weights = self._weights.name
        return config

    def update_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """The model's dtype; ValueError for another one than the bundle's."""
        said = read_object(self._weights.parent / CONFIG).get("dtype")
        if said and said != str(dtype).removeprefix("torch."):
            raise ValueError(f"dtype={dtype}: the bundle's tensors are {said}; leave dtype out, or dtype=auto")
        return dtype

    def update_weight_conversions(self, *_: Any) -> list[Any]:
        """Whatever transformers finds in the file is dropped: it is still coded, and `fill` reads it."""
        from transformers.core_model_loading import ConversionOps, WeightConverter

        class Dropped(ConversionOps):  # type: ignore[misc]
            """Makes no tensor of what it is given."""

            def convert(self, *_: Any, missing_keys: set[str], **__: Any) -> dict[str, Any]:
                missing_keys.clear()  # or memory would be taken for them
                return {}

        return [WeightConverter([".+"], [self._any_key], [Dropped()])]

    def _process_model_before_weight_loading(self, model: Any, **_: Any) -> None:
        self._any_key = next(iter(model.state_dict()))

    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> Any:
        from slimrun.ops.framework.pytorch.restoring import fill

        fill(model, self._weights.parent)
        return model.to(self._device)

    def is_serializable(self, *_: Any) -> bool:
        """False: a bundle is copied, not saved again."""
        return False

    @property
    def is_trainable(self) -> bool:
        """False: integers are not trained."""
        return False

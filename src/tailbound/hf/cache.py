"""The cache that generation passes around, and how a stock one becomes certified."""

from __future__ import annotations

from transformers import PreTrainedConfig
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer, EncoderDecoderCache

from tailbound.hf.layer import CertifiedLayer
from tailbound.hf.sliding import CertifiedSlidingLayer


class CertifiedCache(DynamicCache):
    """A cache for `generate(past_key_values=...)` that certified attention can read sparsely.

    `certify` makes the caches that pass through its model such caches; make one by hand to use certified attention
    with a model that was loaded with `attn_implementation="tailbound"`. Linear and other kinds of layers stay stock.

    Args:
        config: the model's, which says of what kind each layer is; without it layers are made as they are met.

    >>> import torch
    >>> cache = CertifiedCache()
    >>> key, value = torch.randn(1, 2, 300, 16), torch.randn(1, 2, 300, 16)
    >>> keys, _ = cache.update(key, value, layer_idx=0)
    >>> cache.crop(-100)
    >>> torch.equal(keys, key), cache.get_seq_length()
    (True, 200)
    """

    def __init__(self, config: PreTrainedConfig | None = None) -> None:
        super().__init__(config=config)
        certify_layers(self)

    @property
    def nbytes(self) -> int:
        """Bytes held by certified layers: keys, values, sketches, and room to grow."""
        return sum(layer.nbytes for layer in self.layers if isinstance(layer, CertifiedLayer))


def certify_layers(cache: Cache) -> None:
    """Replace stock dynamic and sliding layers by certified ones, in place and with what they hold; no other kinds."""
    if isinstance(cache, EncoderDecoderCache):
        certify_layers(cache.self_attention_cache)
        cache = cache.cross_attention_cache
    if cache.offloading:
        return
    for position, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer:
            cache.layers[position] = CertifiedLayer.of(layer)
        elif type(layer) is DynamicSlidingWindowLayer and layer.sliding_window > 1:
            cache.layers[position] = CertifiedSlidingLayer.of(layer)
    if cache.layer_class_to_replicate is DynamicLayer:
        cache.layer_class_to_replicate = CertifiedLayer

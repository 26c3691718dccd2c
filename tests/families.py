"""The model families of the matrix: small random ones, by what they ask of attention."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor
from transformers import GenerationMixin, PreTrainedModel

VOCABULARY = 96
WIDTH, HEADS, HEAD_DIM = 64, 4, 16
SPREAD = 4.0
"""Standard deviation, in nats, that the logits of each layer are scaled to."""


class Family(NamedTuple):
    """A family and what of it is certified.

    Attributes:
        name: of its transformers class, without the task.
        build: a model with random weights.
        traits: what is particular about its attention.
        kind: "decoder", "encoder-decoder" or "encoder".
        certified: what of it `certify` certifies.
        limits: what is exact, or refused, and why.
        native: whether the kernels serve it.
    """

    name: str
    build: Callable[[], PreTrainedModel]
    traits: str
    kind: str = "decoder"
    certified: str = "decoding"
    limits: str = ""
    native: bool = True


def _decoder(name: str, config: str = "", **options: Any) -> Callable[[], PreTrainedModel]:
    base = {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "intermediate_size": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": HEADS,
        "num_key_value_heads": 2,
        "head_dim": HEAD_DIM,
        "max_position_embeddings": 4096,
        "initializer_range": 0.3,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": None,
        "tie_word_embeddings": False,
    }
    return lambda: _make(f"{name}ForCausalLM", config or f"{name}Config", base | options)


def _make(model: str, config: str, options: dict[str, Any]) -> PreTrainedModel:
    torch.manual_seed(0)
    made = getattr(transformers, model)(getattr(transformers, config)(**options)).eval()
    for name, module in made.named_modules():
        if name.endswith("q_norm") and config != "Gemma3TextConfig":
            module.weight.data *= SPREAD  # a norm undoes what sharpens a projection
    if made.can_generate():
        made.generation_config.eos_token_id = None  # write as much as was asked for
    return made


GEMMA = {"query_pre_attn_scalar": HEAD_DIM, "hidden_activation": "gelu_pytorch_tanh"}
WINDOW = 300
"""Of the sliding families: shorter than their prompts."""
T5 = {
    "vocab_size": VOCABULARY,
    "d_model": WIDTH,
    "d_kv": HEAD_DIM,
    "d_ff": WIDTH,
    "num_layers": 2,
    "num_heads": HEADS,
    "dropout_rate": 0.0,
    "initializer_factor": 1.5,
    "decoder_start_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
}
SEQ2SEQ = {
    "vocab_size": VOCABULARY,
    "d_model": WIDTH,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS,
    "encoder_ffn_dim": WIDTH,
    "decoder_ffn_dim": WIDTH,
    "init_std": 0.35,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
    "decoder_start_token_id": 1,
    "forced_eos_token_id": None,
}
ENCODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "initializer_range": 0.3,
    "pad_token_id": 0,
}
BY_HAND = "exact unless asked for by `study=True`, and then from all keys in float64"

FAMILIES = [
    Family("Llama", _decoder("Llama"), "grouped heads"),
    Family("Llama, one KV head", _decoder("Llama", num_key_value_heads=1), "multi-query"),
    Family("Mistral", _decoder("Mistral", sliding_window=WINDOW), "sliding window"),
    Family("Mixtral", _decoder("Mixtral", num_local_experts=4), "grouped heads, experts"),
    Family("Qwen2", _decoder("Qwen2"), "biases in projections"),
    Family("Qwen3", _decoder("Qwen3"), "norms of queries and keys"),
    Family("Gemma 2", _decoder("Gemma2", sliding_window=WINDOW, **GEMMA), "softcap, sliding and whole layers"),
    Family(
        "Gemma 3",
        _decoder(
            "Gemma3",
            "Gemma3TextConfig",
            sliding_window=WINDOW,
            num_hidden_layers=3,
            sliding_window_pattern=3,
            **GEMMA | {"query_pre_attn_scalar": 1},
        ),
        "sliding and whole layers, norms",
    ),
    Family("Phi-3", _decoder("Phi3"), "one projection for queries, keys and values"),
    Family("OLMo 2", _decoder("Olmo2"), "norms of queries and keys"),
    Family("Cohere", _decoder("Cohere"), "parallel blocks"),
    Family(
        "GPT-2",
        lambda: _make(
            "GPT2LMHeadModel",
            "GPT2Config",
            {"vocab_size": VOCABULARY, "n_embd": WIDTH, "n_layer": 2, "n_head": HEADS, "n_positions": 2048}
            | {"initializer_range": 0.3, "eos_token_id": None, "bos_token_id": 1, "pad_token_id": 0},
        ),
        "one projection for queries, keys and values",
    ),
    Family("GPT-NeoX", _decoder("GPTNeoX", num_key_value_heads=HEADS), "rotary in part"),
    Family(
        "gpt-oss",
        _decoder("GptOss", sliding_window=WINDOW, num_local_experts=4, num_experts_per_tok=2),
        "sinks, sliding and whole layers, experts",
    ),
    Family(
        "DeepSeek-V3",
        _decoder(
            "DeepseekV3",
            head_dim=8,
            num_key_value_heads=HEADS,
            q_lora_rank=32,
            kv_lora_rank=32,
            qk_rope_head_dim=8,
            qk_nope_head_dim=8,
            v_head_dim=HEAD_DIM,
            n_routed_experts=4,
            n_group=1,
            topk_group=1,
            num_experts_per_tok=2,
            moe_intermediate_size=32,
            first_k_dense_replace=1,
        ),
        "latents, expanded at every step",
        certified="nothing",
        limits="exact: keys are expanded from latents after the cache, so no index holds them",
    ),
    Family(
        "Falcon",
        lambda: _make(
            "FalconForCausalLM",
            "FalconConfig",
            {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": HEADS},
        ),
        "not through the attention interface",
        certified="nothing",
        limits="refused: it does not call the attention interface of transformers",
    ),
    Family(
        "T5",
        lambda: _make("T5ForConditionalGeneration", "T5Config", T5),
        "position bias, cross attention",
        "encoder-decoder",
        "decoding, cross attention",
        "the encoder is exact; layers with a position bias are certified in torch, slower",
        native=False,
    ),
    Family(
        "BART",
        lambda: _make("BartForConditionalGeneration", "BartConfig", SEQ2SEQ | {"max_position_embeddings": 2048}),
        "cross attention",
        "encoder-decoder",
        "decoding, cross attention",
        "the encoder is exact",
    ),
    Family(
        "Whisper",
        lambda: _make(
            "WhisperForConditionalGeneration",
            "WhisperConfig",
            SEQ2SEQ | {"num_mel_bins": 8, "max_source_positions": 600, "max_target_positions": 1024},
        ),
        "cross attention to sound",
        "encoder-decoder",
        "decoding, cross attention",
        "the encoder is exact",
    ),
    Family(
        "BERT",
        lambda: _make("BertForMaskedLM", "BertConfig", ENCODER | {"max_position_embeddings": 600}),
        "encoder",
        "encoder",
        "on request",
        BY_HAND,
    ),
    Family(
        "RoBERTa",
        lambda: _make("RobertaForMaskedLM", "RobertaConfig", ENCODER | {"max_position_embeddings": 600}),
        "encoder",
        "encoder",
        "on request",
        BY_HAND,
    ),
    Family(
        "ViT",
        lambda: _make(
            "ViTModel",
            "ViTConfig",
            {"hidden_size": WIDTH, "intermediate_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": HEADS}
            | {"initializer_range": 0.3, "image_size": 96, "patch_size": 4},
        ),
        "encoder of 577 patches",
        "encoder",
        "on request",
        BY_HAND,
    ),
]


NAMED = {family.name: family for family in FAMILIES}
DECODING = [family.name for family in FAMILIES if family.kind != "encoder" and "decoding" in family.certified]
ENCODERS = [family.name for family in FAMILIES if family.kind == "encoder"]
PROMPT = 700
"""Tokens of a prompt: the index of head_dim 16 has room for 768 keys then, and for 960 after its first growth."""


@functools.cache
def model_of(name: str) -> PreTrainedModel:
    """The family's model, made once a process; its attention is what `eager` left it on."""
    model = NAMED[name].build()
    model.set_attn_implementation("eager")
    return model


def inputs(name: str, length: int = PROMPT, batch: int = 2) -> dict[str, Tensor]:
    """What a family's model reads: tokens, the first entry left-padded; for an encoder-decoder a prompt of both."""
    random = torch.Generator().manual_seed(1)

    def tokens(count: int) -> Tensor:
        return torch.randint(3, VOCABULARY, (batch, count), generator=random)

    if name == "ViT":
        return {"pixel_values": torch.randn(batch, 3, 96, 96, generator=random)}
    if name == "Whisper":
        return {
            "input_features": torch.randn(batch, 8, 1200, generator=random),
            "decoder_input_ids": tokens(length),
        }
    ids = tokens(560 if NAMED[name].kind != "decoder" else length)
    mask = torch.ones_like(ids)
    mask[0, :37] = 0
    made = {"input_ids": ids.masked_fill(mask == 0, 0), "attention_mask": mask}
    return made | {"decoder_input_ids": tokens(length)} if NAMED[name].kind == "encoder-decoder" else made


def write(model: PreTrainedModel, read: dict[str, Tensor], count: int, **options: Any) -> tuple[Tensor, Tensor]:
    """Greedy tokens (B, count) and their logits (B, count, vocabulary)."""
    options = {"do_sample": False, "pad_token_id": 0} | options
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = GenerationMixin.generate(
            model, **read, max_new_tokens=count, return_dict_in_generate=True, output_logits=True, **options
        )
    return found.sequences[:, -count:], torch.stack(found.logits, 1)


def table() -> str:
    """The matrix as Markdown, from what its tests expect."""
    lines = ["| family | attention | served | certified | limits |", "|---|---|---|---|---|"]
    for family in FAMILIES:
        served = "refused" if family.limits.startswith("refused") else "yes"
        lines.append(f"| {family.name} | {family.traits} | {served} | {family.certified} | {family.limits} |")
    return "\n".join(lines)


if __name__ == "__main__":
    from pathlib import Path

    page = Path(__file__).parents[1] / "docs/models.md"
    before, _, rest = page.read_text().partition("| family | attention |")
    page.write_text(before + table() + rest[rest.index("\n\n") :])

"""What the config of a model tells of its family: how it attends, whether it is causal."""

from typing import Any

from llmexp.errors import RequestError

NOT_CAUSAL = """{source} ({family}) is no causal language model: {why}.
llmexp trains models that predict the next token from those before it: GPT-2, Llama, Qwen, Gemma ...
name one (model=gpt2, or model=hf model.name=OWNER/NAME)."""


def attention_of(config: Any) -> str:
    """Name the attention that this family runs with: PyTorch's fused kernels (sdpa), or eager
    where it cannot use them."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    family = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    return "sdpa" if family._supports_sdpa else "eager"


def refuse_other_kinds(config: Any, source: str) -> None:
    """Refuse a config that is of no causal language model."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

    kind, why = type(config), ""
    encodes = kind in MODEL_FOR_MASKED_LM_MAPPING and not config.is_encoder_decoder
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING:
        why = "transformers knows no causal language model of this family"
    elif encodes and not getattr(config, "is_decoder", False):
        why = "it is bidirectional, a token sees those after it (no is_decoder in its config.json)"
    if why:
        raise not_causal(config, source, why)


def not_causal(config: Any, source: str, why: str) -> RequestError:
    """Return the refusal of a model, `source`, that is of another kind."""
    return RequestError(NOT_CAUSAL.format(source=source, family=config.model_type, why=why))

"""The loss: cross-entropy in nats, summed over the label tokens, never with the logits of all of
them at once.

Shapes: B rows, T positions, N label tokens, D model width, V vocabulary.
"""

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llmexp import packed

IGNORE = -100  # the target of a position that is not a label
CHUNK = 1024  # label tokens per matrix product with the head; bounds the logits to [CHUNK, V]


class Rows(Protocol):
    """What a forward pass reads: int64 tensors [B, T] on the model's device (llmexp/data)."""

    @property
    def input_ids(self) -> Tensor: ...
    @property
    def targets(self) -> Tensor: ...  # the token to predict from each position, or IGNORE
    @property
    def position_ids(self) -> Tensor | None: ...  # None: one example per row
    @property
    def labels(self) -> Tensor: ...  # [N] where the targets are labels, in the flattened rows


@dataclass(frozen=True)
class Head:
    """How a model family turns hidden states [N, D] into logits [N, V]."""

    weight: Tensor
    bias: Tensor | None
    scale: float = 1.0  # logits are multiplied by it
    softcap: float | None = None  # then bent to cap * tanh(logits / cap), as Gemma 2 does

    def logits(self, hidden: Tensor) -> Tensor:
        """Return float32 (or float64) logits [N, V]."""
        logits = F.linear(hidden, self.weight.to(hidden.dtype), self.bias)
        logits = (logits if logits.dtype == torch.float64 else logits.float()) * self.scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)


def head_of(model: Any) -> Head:
    """Read the head of a transformers causal LM. Raises AttributeError where the family has
    none."""
    projection = model.get_output_embeddings()
    config = model.config
    scale = float(getattr(config, "logit_scale", None) or 1.0)
    scale /= float(getattr(config, "logits_scaling", None) or 1.0)
    softcap = getattr(config, "final_logit_softcapping", None)
    return Head(projection.weight, getattr(projection, "bias", None), scale, softcap)


def hidden_states(model: Any, rows: Rows) -> Tensor:
    """Return what the head reads, [B, T, D]: the model without its head."""
    with packed.told(rows.position_ids):
        output = model.base_model(
            input_ids=rows.input_ids,
            position_ids=rows.position_ids,
            use_cache=False,
            return_dict=True,
        )
    hidden: Tensor = output.last_hidden_state
    return hidden


def token_losses(model: Any, rows: Rows) -> Tensor:
    """Return the loss of every label token, [N], in row-major order: the evaluation's view."""
    targets = chosen(rows.targets, rows)
    if not reaches_head(model):
        logits = chosen(full_logits(model, rows), rows)
        return F.cross_entropy(logits.float(), targets, reduction="none")
    hidden = _read_by_head(model, rows)
    with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
        return _sweep(hidden, head_of(model), targets, None, [False] * 3)[0]


def loss_sum(model: Any, rows: Rows) -> Tensor:
    """Return the sum of the losses of all label tokens, a scalar in nats that can be
    differentiated.

    Divide by the label tokens of the whole optimizer step, not of this forward pass: then the
    gradient does not depend on how the step was cut.
    """
    targets = chosen(rows.targets, rows)
    if not reaches_head(model):
        logits = chosen(full_logits(model, rows), rows)
        return F.cross_entropy(logits.float(), targets, reduction="sum")
    hidden, head = _read_by_head(model, rows), head_of(model)
    with torch.autocast(hidden.device.type, enabled=False):
        total: Tensor = ChunkedCrossEntropy.apply(  # type: ignore[no-untyped-call]
            hidden, head.weight, head.bias, targets, head.scale, head.softcap
        )
    return total


def _read_by_head(model: Any, rows: Rows) -> Tensor:
    """Return the hidden states of the labels, [N, D], in the dtype of the product with the head."""
    hidden = chosen(hidden_states(model, rows), rows)
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        return hidden.to(torch.get_autocast_dtype(device))
    return hidden


def chosen(values: Tensor, rows: Rows) -> Tensor:
    """Return what `values`, [B, T] or [B, T, D], holds at the labels: [N] or [N, D].

    By index: a mask would make the host wait for the GPU to count it.
    """
    return values.flatten(0, 1).index_select(0, rows.labels)


def full_logits(model: Any, rows: Rows) -> Tensor:
    """Return all logits, [B, T, V]: for a family whose head cannot be reached."""
    with packed.told(rows.position_ids):
        output = model(input_ids=rows.input_ids, position_ids=rows.position_ids, use_cache=False)
    logits: Tensor = output.logits
    return logits


class ChunkedCrossEntropy(torch.autograd.Function):
    """sum(cross_entropy(head(hidden), targets)) with [CHUNK, V] logits alive at a time.

    In bf16, fp32 and fp64 the gradients are made in the forward pass, chunk by chunk while the
    logits are at hand: one matrix product with the head less than recomputing them. In fp16 small
    probabilities would underflow before the loss scale reaches them, so there the chunks are
    computed again in the
    backward pass, with the scale applied in fp32 first.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,  # [N, D], the dtype of the matrix products
        weight: Tensor,  # [V, D]
        bias: Tensor | None,  # [V]
        targets: Tensor,  # [N]
        scale: float,
        softcap: float | None,
    ) -> Tensor:
        ctx.head = scale, softcap
        ctx.save_for_backward(hidden, weight, bias, targets)
        wanted = [hidden.dtype != torch.float16 and needs for needs in ctx.needs_input_grad[:3]]
        head = Head(weight, bias, scale, softcap)
        losses, grads = _sweep(hidden, head, targets, None, wanted)
        ctx.grads = grads if any(wanted) else None
        return losses.sum()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        grads, ctx.grads = ctx.grads, None  # scaled in place, hence good for one backward pass
        if grads is not None:
            grads = tuple(None if grad is None else grad.mul_(upstream) for grad in grads)
        else:
            hidden, weight, bias, targets = ctx.saved_tensors
            head = Head(weight, bias, *ctx.head)
            _, grads = _sweep(hidden, head, targets, upstream, list(ctx.needs_input_grad[:3]))
        return (*grads, None, None, None)


def _sweep(
    hidden: Tensor, head: Head, targets: Tensor, upstream: Tensor | None, wanted: list[bool]
) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """Go through the chunks once: the losses [N], and the gradients `wanted` of their sum for
    hidden, weight and bias. A target that is IGNORE adds nothing to any of them."""
    size, exact = head.weight.shape[0], torch.promote_types(hidden.dtype, torch.float32)
    weight = _aligned(head.weight, hidden.dtype)
    bias = None if head.bias is None else _aligned(head.bias, hidden.dtype)
    d_hidden = torch.empty_like(hidden) if wanted[0] else None
    d_weight = torch.empty_like(head.weight) if wanted[1] else None
    d_bias = torch.zeros_like(head.bias) if head.bias is not None and wanted[2] else None
    losses = hidden.new_empty(len(hidden), 1, dtype=exact)
    if d_weight is not None and not len(hidden):
        d_weight.zero_()
    for start in range(0, len(hidden), CHUNK):
        chunk = slice(start, start + CHUNK)
        t = targets[chunk, None]
        ignored = t == IGNORE
        t = t.masked_fill(ignored, 0)
        h = hidden[chunk].masked_fill(ignored, 0)
        # one name for all, and in place: a second [CHUNK, V] would be the largest tensor of many
        logits = _logits(h, weight, bias).to(exact)
        slope = _bend(logits, head)
        logits[:, size:] = -math.inf
        losses[chunk] = _softmax_(logits, t, size).masked_fill_(ignored, 0)
        if not any(wanted):
            del logits, slope  # before the next ones are made
            continue
        # Training makes the next ones beside these. Without, a plan, which is of rows of one
        # length, falls by 5 %; what rows of many take, whose blocks fit less well, by 1 %.
        logits.scatter_add_(1, t, torch.full_like(t, -1, dtype=exact))  # the gradient of the logits
        for factor in (slope, None if head.scale == 1.0 else head.scale, upstream):
            if factor is not None:
                logits.mul_(factor)
        logits = logits.to(h.dtype)
        if d_hidden is not None:
            torch.mm(logits[:, : len(weight)], weight, out=d_hidden[chunk])  # may be padded, too
            d_hidden[chunk].masked_fill_(ignored, 0)
        if d_weight is not None:
            _add_product(d_weight, logits, h, is_first=start == 0)
        if d_bias is not None:
            d_bias += ((~ignored).to(h.dtype).t() @ logits)[0, :size]
    return losses[:, 0], (d_hidden, d_weight, d_bias)


def _softmax_(logits: Tensor, targets: Tensor, size: int) -> Tensor:
    """Turn logits [N, V] into probabilities in place; return the losses [N, 1] of targets [N, 1],
    which are below `size`.

    A loss is what the target's logit lacks to the largest, and the logarithm of the largest
    probability, which never underflows.
    """
    losses = logits.amax(1, keepdim=True) - logits[:, :size].gather(1, targets)
    torch.softmax(logits, 1, out=logits)
    return losses.sub_(logits.amax(1, keepdim=True).log_())


def _aligned(parameter: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the head's weight or bias in `dtype`; a copy in 16 bits with zeros up to a multiple of
    64 tokens.

    GPT-2 knows 50,257 tokens, and tensor cores want rows that begin at a multiple of 16 bytes:
    on an H200 the head's products took four times as long without. No copy is made for that alone.
    """
    if parameter.dtype == dtype or parameter.shape[0] % 64 == 0 or dtype.itemsize > 2:
        return parameter.to(dtype)
    size = parameter.shape[0]
    padded = parameter.new_empty((_rounded_up(size), *parameter.shape[1:]), dtype=dtype)
    padded[:size] = parameter
    padded[size:] = 0
    return padded


def _rounded_up(size: int) -> int:
    """Return the next multiple of 64."""
    return -(-size // 64) * 64


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return hidden weight^T + bias, [N, V]; on a CPU with zeros up to a multiple of 64 columns,
    which MKL writes 1.4 times as fast."""
    size = weight.shape[0]
    if not hidden.is_cpu or size % 64 == 0:
        return F.linear(hidden, weight, bias)
    logits = hidden.new_empty(hidden.shape[0], _rounded_up(size))
    if bias is None:
        torch.mm(hidden, weight.t(), out=logits[:, :size])
    else:
        torch.addmm(bias, hidden, weight.t(), out=logits[:, :size])
    logits[:, size:] = 0
    return logits


def _bend(logits: Tensor, head: Head) -> Tensor | None:
    """Scale and soft-cap logits in place, as the head does; return the slope of the soft-cap."""
    if head.scale != 1.0:
        logits.mul_(head.scale)
    if head.softcap is None:
        return None
    logits.div_(head.softcap).tanh_()
    slope = 1 - logits.square()
    logits.mul_(head.softcap)
    return slope


def _add_product(total: Tensor, d_logits: Tensor, hidden: Tensor, *, is_first: bool) -> None:
    """Add d_logits^T hidden, but for the rows that only align, to `total`, [V, D], which holds
    anything before the first."""
    size = total.shape[0]
    if total.dtype == hidden.dtype:  # without a matrix [V, D] between
        torch.addmm(total, d_logits[:, :size].t(), hidden, beta=0 if is_first else 1, out=total)
    elif is_first:
        total.copy_((d_logits.t() @ hidden)[:size])
    else:
        total += (d_logits.t() @ hidden)[:size]


def reaches_head(model: Any) -> bool:
    """Say whether `base_model` and `head_of` give this model's own logits; `probe_head`, or
    llmexp/probe.py before it, found out."""
    return bool(getattr(model, "llmexp_reaches_head", False))


@dataclass(frozen=True)
class Probe:
    """A few tokens to try a model on."""

    input_ids: Tensor
    targets: Tensor
    position_ids: Tensor | None

    @property
    def labels(self) -> Tensor:
        """Where the targets are labels."""
        return (self.targets.flatten() != IGNORE).nonzero().flatten()


@torch.no_grad()
def probe_head(model: nn.Module) -> str | None:
    """Try base model and head against the model's own logits, once; return why not, or None where
    they agree.

    Where they do not (a family that does more between them), the loss takes the full logits.
    """

    ids = torch.arange(4, device=next(model.parameters()).device)[None]
    rows = Probe(input_ids=ids, targets=ids, position_ids=None)
    training = model.training
    model.eval()
    try:
        ours = head_of(model).logits(hidden_states(model, rows))
        theirs = full_logits(model, rows).to(ours.dtype)
        error = (ours - theirs).abs().max().item()
        why = (
            None
            if error < 1e-3 * max(1.0, theirs.abs().max().item())
            else f"logits differ by {error:.2g}"
        )
    except (AttributeError, TypeError, RuntimeError) as problem:
        why = f"{type(problem).__name__}: {problem}"
    model.train(training)
    model.llmexp_reaches_head = why is None  # type: ignore[assignment]
    return why

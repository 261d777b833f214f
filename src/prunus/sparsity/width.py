"""Width: a model whose residual stream has fewer features, the same ones everywhere.

Every parameter with an axis along the stream is cut along it: embeddings, norms, the inputs of layers that read the stream, the
outputs of those that write it, the pooler, the head. The other axes (of heads, of neurons) stay. Which axes these are is found
by building the model twice without weights, at its width and at another: the axes that differ, less those of the structures.

    h  in R^[..., d]  ->  h[..., kept]  in R^[..., k]

A norm then goes over k features and not over d, so that this changes what a model gives, and wants training afterwards. The
same is said of the larger model by gates m in {0, 1} on the stream, and norms that count the features whose gate is 1.
"""

from collections import Counter
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from prunus.architectures import KEYS
from prunus.errors import Problem, TargetError
from prunus.sparsity.structures import structures

__all__ = ["keep_features", "stream_axes", "stream_width", "strength"]


def stream_axes(model: Any) -> dict[str, tuple[int, ...]]:
    """Parameter -> its axes along the residual stream.

    Raises ``TargetError`` for a model that cannot be built at another width.
    """
    config = deepcopy(model.config)
    inner = config.get_text_config()
    heads = int(getattr(inner, KEYS.heads))
    width = int(getattr(inner, KEYS.hidden_size))
    other = width + 2 * heads
    setattr(inner, KEYS.hidden_size, other)
    for name in KEYS.pooler_sizes:
        if getattr(inner, name, None) == width:
            setattr(inner, name, other)
    try:
        with torch.device("meta"):
            probe = type(model)(config)
    except Exception as error:
        # Whatever an architecture asks of its width is told, not typed.
        rule = f"be of an architecture that can be built at another width ({str(error)[:80]})"
        raise TargetError(Problem("model", type(model).__name__, rule, "heads, ffn or layers")) from None
    inside: dict[str, int] = {}
    for each in structures(probe):
        inside[f"{each.reader}.weight"] = 1
        for writer in each.writers:
            inside[f"{writer.name}.weight"] = inside[f"{writer.name}.bias"] = 0
    parameters = dict(model.named_parameters())
    wide: dict[str, list[int]] = {}
    for name, parameter in probe.named_parameters():
        if name in parameters:  # what compaction took out is in the architecture still
            wide[name] = [i for i, size in enumerate(parameter.shape) if size == other and inside.get(name) != i]
    # A model that was narrowed has fewer features than its configuration says: those that most of its axes have.
    sizes = Counter(parameters[name].shape[i] for name, axes in wide.items() for i in axes)
    width = sizes.most_common(1)[0][0] if sizes else width
    by_name: dict[str, tuple[int, ...]] = {}
    for name, axes in wide.items():
        along = tuple(i for i in axes if parameters[name].shape[i] == width)
        if along:
            by_name[name] = along
    return by_name


def stream_width(model: Any) -> int:
    """Features of the residual stream, counted in the parameters. Raises ``TargetError`` as ``stream_axes`` does."""
    named = dict(model.named_parameters())
    return next((named[name].shape[where[0]] for name, where in stream_axes(model).items()), 0)


def strength(model: Any) -> Tensor:
    """How much each feature of the stream weighs, float32 ``[width]``: the norm of all that is multiplied with it.

    With gradients in ``.grad``, the first-order importance of its gate in the layers that read it, as in ``structures``.
    """
    named = dict(model.named_parameters())
    axes = stream_axes(model)
    readers = {f"{writer.name}.weight" for each in structures(model) for writer in each.writers}
    width = next(named[name].shape[where[0]] for name, where in axes.items())
    total = torch.zeros(width)
    first_order = all(named[name].grad is not None for name in readers)
    for name, where in axes.items():
        parameter = named[name].detach()
        if first_order:
            gradient = named[name].grad
            if name in readers and gradient is not None:
                total += (parameter * gradient).sum(0).float().cpu()
            continue
        for axis in where:
            total += parameter.float().square().movedim(axis, 0).reshape(width, -1).sum(1).cpu()
    return total.abs() if first_order else total.sqrt()


def keep_features(model: Any, kept: Sequence[int], key: str = "hidden") -> None:
    """Leaves these features of the stream, in place; also for a model without weights (on the meta device).

    Raises ``TargetError`` for numbers that are not there, twice there, or none.
    """
    axes = stream_axes(model)
    named = dict(model.named_parameters())
    width = stream_width(model)
    if not kept or len(set(kept)) != len(kept) or not all(0 <= i < width for i in kept):
        rule = f"be one or more different numbers in 0..{width - 1}"
        raise TargetError(Problem(key, list(kept)[:8], rule, f"{width // 2} of them"))
    chosen = torch.tensor(sorted(kept), dtype=torch.int64, device="cpu")
    cut: dict[int, nn.Parameter] = {}  # tied parameters stay tied
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            owner = next((n for n, p in named.items() if p is parameter), None)
            if owner is None or owner not in axes:
                continue
            if id(parameter) not in cut:
                value = parameter.detach()
                for axis in axes[owner]:
                    value = value.index_select(axis, chosen.to(value.device))
                cut[id(parameter)] = nn.Parameter(value.contiguous(), parameter.requires_grad)
            setattr(module, name, cut[id(parameter)])
        _sizes(module, width, len(chosen))


def _sizes(module: Any, width: int, left: int) -> None:
    """What a module says of its own size follows its parameters."""
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.Embedding):
        module.num_embeddings, module.embedding_dim = module.weight.shape
    elif isinstance(module, nn.Conv2d):
        module.out_channels = module.weight.shape[0]
    elif isinstance(module, nn.LayerNorm) and tuple(module.normalized_shape) == (width,):
        module.normalized_shape = (left,)

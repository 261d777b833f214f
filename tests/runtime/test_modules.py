from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from prunus.errors import EngineError
from prunus.runtime import SparseLinear, accelerate
from small import locked_bert


def sparse_linear(inputs: int, outputs: int, pattern: str, bias: bool = True) -> nn.Sequential:
    torch.manual_seed(inputs)
    layer = nn.Linear(inputs, outputs, bias=bias)
    keep = torch.rand(-(-outputs // 4), inputs) < 0.2
    mask = keep.repeat_interleave(4, 0)[:outputs] if pattern == "4x1" else torch.rand(outputs, inputs) < 0.05
    with torch.no_grad():
        layer.weight.mul_(mask)
    return nn.Sequential(layer).eval()


@pytest.mark.parametrize("pattern", ["4x1", "unstructured"])
@pytest.mark.parametrize(("inputs", "outputs"), [(64, 64), (37, 22), (16, 4), (5, 3), (130, 257)])
@pytest.mark.parametrize("rows", [(1,), (7,), (2, 65), (3, 2, 64)])
@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-6), ("int8", 0.02)])
def test_a_sparse_linear_agrees_with_the_dense_one(
    pattern: str, inputs: int, outputs: int, rows: tuple[int, ...], precision: str, tolerance: float
) -> None:
    model = sparse_linear(inputs, outputs, pattern, bias=outputs != 4)
    x = torch.randn(*rows, inputs, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model.double()(x.double())
        model = model.float()
        assert accelerate(model, precision, threads=2, at_most=1.0) == ["0"]
        assert isinstance(model[0], SparseLinear)
        found = model(x)
    assert found.shape == expected.shape
    assert float((found - expected).norm()) <= tolerance * float(expected.norm()) + 1e-6


def test_only_sparse_layers_are_replaced_and_only_for_inference() -> None:
    model = nn.ModuleDict({"dense": nn.Linear(32, 32), "sparse": sparse_linear(32, 32, "4x1")})
    with pytest.raises(ValueError, match=r"call model.eval\(\) first"):
        accelerate(model.train())
    with pytest.raises(ValueError, match="precision must be float32 or int8"):
        accelerate(model.eval(), "int4")
    assert accelerate(model.eval()) == ["sparse.0"]
    assert type(model["dense"]) is nn.Linear
    assert accelerate(model.eval()) == []


def test_no_rows_give_no_rows() -> None:
    model = sparse_linear(32, 20, "4x1")
    accelerate(model, at_most=1.0)
    assert model(torch.zeros(0, 32)).shape == (0, 20)


def test_bfloat16_goes_in_and_comes_out() -> None:
    model = sparse_linear(64, 32, "4x1")
    dense = deepcopy(model)
    accelerate(model, at_most=1.0)
    x = torch.randn(5, 64).bfloat16()
    with torch.no_grad():
        found = model(x)
        expected = dense(x.float())
    assert found.dtype == torch.bfloat16
    assert float((found.float() - expected).abs().max()) < 0.02


# what people do with a model afterwards


def accelerated(precision: str = "float32") -> tuple[nn.Sequential, nn.Sequential, torch.Tensor]:
    """A model with accelerated layers, the same with dense ones, and an input."""
    torch.manual_seed(0)
    dense = nn.Sequential(
        sparse_linear(32, 48, "4x1")[0], nn.ReLU(), sparse_linear(48, 20, "4x1", bias=False)[0], nn.Linear(20, 3)
    )
    model = deepcopy(dense).eval()
    assert accelerate(model, precision, threads=2) == ["0", "2"]
    return model, dense.eval(), torch.randn(5, 32)


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_the_state_is_that_of_the_dense_model(precision: str) -> None:
    model, dense, _ = accelerated(precision)
    found, expected = model.state_dict(), dense.state_dict()
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_a_saved_model_is_whole(tmp_path: Path) -> None:
    model = locked_bert()
    ids = torch.randint(5, 40, (2, 9))
    with torch.no_grad():
        expected = model(ids).logits
        assert len(accelerate(model, threads=1)) > 4
        model.save_pretrained(tmp_path)
        again = type(model).from_pretrained(tmp_path).eval()
        assert torch.equal(again(ids).logits, expected)


def test_a_loaded_state_is_used() -> None:
    model, dense, x = accelerated()
    with torch.no_grad():
        for parameter in dense.parameters():
            parameter.mul_(3)
        model.load_state_dict(dense.state_dict())
        assert torch.allclose(model(x), dense(x), atol=1e-4)
        state = dense.state_dict()
        with pytest.raises(RuntimeError, match=r"size mismatch for 0\.weight"):
            model.load_state_dict(state | {"0.weight": torch.zeros(2, 2)})
        with pytest.raises(RuntimeError, match=r"Missing key.*2\.weight"):
            model.load_state_dict({name: value for name, value in state.items() if name != "2.weight"})
        with pytest.raises(RuntimeError, match=r"Unexpected key.*2\.bias"):
            model.load_state_dict(state | {"2.bias": torch.zeros(20)})


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("first", [True, False])
def test_half_precision_before_and_after(kind: torch.dtype, first: bool) -> None:
    model, dense, x = accelerated()
    dense, x = dense.to(kind), x.to(kind)
    if first:
        model = deepcopy(dense)
        assert accelerate(model, threads=1) == ["0", "2"]
    model = model.to(kind)
    with torch.no_grad():
        found, expected = model(x), dense(x)
    assert found.dtype == kind
    assert torch.allclose(found.float(), expected.float(), atol=0.05)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in dense.state_dict().items())


def test_a_copy_has_weights_of_its_own() -> None:
    model, _, x = accelerated()
    with torch.no_grad():
        expected = model(x)
        copied = deepcopy(model)
        assert torch.equal(copied(x), expected)
        copied[0].weight.mul_(2)  # packed again when it is used
        assert not torch.allclose(copied(x), expected)
        assert torch.equal(model(x), expected)


@pytest.mark.parametrize(
    ("use", "words"),
    [
        (lambda model, x: model.train()(x), "be used for inference, got training mode"),
        (lambda model, x: model(x.requires_grad_()).sum().backward(), "be used for inference, got a backward pass"),
        (lambda model, x: model.to("meta"), "device must be the CPU"),
        (lambda model, x: model[:1](x.to("meta")), "input must be on the CPU"),
        (lambda model, x: model.double(), "dtype must be float32"),
        (lambda model, x: deepcopy(model[0]).__reduce_ex__(2), "it is not pickled"),
    ],
)
def test_what_would_be_wrong_is_refused(use: Any, words: str) -> None:
    model, _, x = accelerated()
    with pytest.raises(EngineError, match=words):
        use(model, x)


def test_layers_above_an_accelerated_one_still_learn() -> None:
    model, _, x = accelerated()
    model(x).sum().backward()
    assert model[3].weight.grad is not None


def test_layers_with_hooks_stay_as_they_are() -> None:
    model = sparse_linear(32, 32, "4x1")
    calls = []
    model[0].register_forward_hook(lambda *args: calls.append(1))
    assert accelerate(model) == []
    model(torch.zeros(1, 32))
    assert calls == [1]

from copy import deepcopy

import pytest
import torch
from torch import nn

from prunus.runtime import SparseLinear, accelerate


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

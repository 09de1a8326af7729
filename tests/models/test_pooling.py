import numpy as np
import pytest
import torch

from models import pooling

torch.set_num_threads(1)

KINDS = ["mean", "max", "last", "attention"]
X = torch.tensor([[[2.0, -3.0], [4.0, -1.0], [99.0, 99.0]], [[-5.0, 7.0], [99.0, 99.0], [99.0, 99.0]]])
LENGTHS = torch.tensor([2, 1])
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


@pytest.mark.parametrize(
    ("kind", "expected"), [("mean", [[3, -2], [-5, 7]]), ("max", [[4, -1], [-5, 7]]), ("last", [[4, -1], [-5, 7]])]
)
def test_pooling_by_hand(kind, expected):
    assert pooling.build(kind, 2)(X, LENGTHS).tolist() == expected


def test_the_last_step_of_backward_units_is_the_first():
    assert pooling.build("last", 2, backward=1)(X, LENGTHS).tolist() == [[4, -3], [-5, 7]]


def test_attention_pooling_follows_its_equations():
    torch.manual_seed(0)
    pool, x = pooling.AttentionPooling(4).double(), torch.randn(3, 6, 4, dtype=torch.float64)
    w, v = pool.project.weight.detach().numpy(), pool.score.weight.detach().numpy()[0]
    y = pool(x, torch.tensor([6, 1, 3])).detach().numpy()
    for b, n in enumerate([6, 1, 3]):
        a = np.exp([v @ np.tanh(w @ x[b, t].numpy()) for t in range(n)])
        np.testing.assert_allclose(y[b], (a / a.sum()) @ x[b, :n].numpy(), atol=1e-10)
    assert not np.allclose(y[0], x[0].mean(0))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("garbage", [1e6, torch.inf, torch.nan])
@pytest.mark.parametrize("kind", KINDS)
def test_padding_has_no_influence_on_values_or_gradients(kind, garbage, device):
    torch.manual_seed(0)
    pool, results = pooling.build(kind, 2).to(device), []
    for value in (0.0, garbage):
        x = X.masked_fill(X == 99, value).to(device).requires_grad_()
        y = pool(x, LENGTHS)
        grads = torch.autograd.grad(y.square().sum(), [x, *pool.parameters()])
        results.append((y, *grads))
    for clean, dirty in zip(*results, strict=True):
        assert torch.equal(clean, dirty) and torch.isfinite(dirty).all()
    assert (results[1][1][0, 2] == 0).all() and (results[1][1][1, 0] != 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_one_row_of_one_step_is_itself(kind):
    assert pooling.build(kind, 2)(X[:1, :1], torch.tensor([1])).tolist() == [[2, -3]]


@pytest.mark.parametrize("kind", KINDS)
def test_precision_is_kept(kind):
    assert pooling.build(kind, 2).bfloat16()(X.bfloat16(), LENGTHS).dtype == torch.bfloat16


def test_unknown_pooling_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"task\.pooling='sum' is not known; use one of mean, max, last, attention"):
        pooling.build("sum", 2)

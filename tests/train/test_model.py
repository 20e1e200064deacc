"""The model: documents in a row do not see each other, equal seeds give equal weights, the loss is the plain one."""

import pytest
import torch
from torch.nn import functional as F

from train.attention import choose_attention, document_bounds, document_mask
from train.cross_entropy import summed_cross_entropy
from train.model import Pretrainer, Vocabulary, build_llama
from train.sizes import SIZES

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

EOT = 0
VOCABULARY = Vocabulary(128, EOT)
TOLERANCE = {"atol": 2e-5, "rtol": 1e-4}


def pretrainer(name="25k", seed=0):
    return Pretrainer(build_llama(SIZES[name], VOCABULARY, 64, seed), EOT)


def documents(*lengths):
    generator = torch.Generator().manual_seed(1)
    words = [torch.randint(1, 128, (length,), generator=generator) for length in lengths]
    return [torch.cat([torch.tensor([EOT]), document]) for document in words]


def test_a_document_after_others_gets_the_logits_it_gets_alone():
    model, parts = pretrainer(), documents(9, 14, 6)
    with torch.no_grad():
        packed = model.logits(torch.cat(parts)[None])[0]
        alone = [model.logits(part[None])[0] for part in parts]
        blind = model.llama(torch.cat(parts)[None]).logits[0]
    for part, logits in zip(packed.split([10, 15, 7]), alone, strict=True):
        torch.testing.assert_close(part, logits, **TOLERANCE)
    # The same row without the mask differs: the test above cannot pass by chance.
    assert (packed - blind)[10:].abs().max() > 100 * TOLERANCE["atol"]
    torch.testing.assert_close(packed[:10], blind[:10], **TOLERANCE)


def test_a_token_influences_its_own_document_from_its_place_on_and_nothing_else():
    model, parts = pretrainer(), documents(9, 14, 6)
    row = torch.cat(parts)[None]
    changed = row.clone()
    changed[0, 15] = row[0, 15] % 126 + 1
    with torch.no_grad():
        difference = (model.logits(row) - model.logits(changed)).abs().amax(dim=(0, 2))
    assert difference[:15].max() == 0
    assert difference[15:25].min() > 0
    assert difference[25:].max() == 0


def test_mask_of_a_small_row():
    mask = document_mask(torch.tensor([[5, 6, EOT, 7, EOT]]), EOT, torch.float32)
    assert mask.shape == (1, 1, 5, 5)
    assert (mask[0, 0] == 0).int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 1, 1, 0],
        [0, 0, 0, 0, 1],
    ]


def test_bounds_of_small_rows():
    rows = torch.tensor([[5, 6, EOT, 7, EOT], [EOT, 1, 2, EOT, 3]])
    assert document_bounds(rows, EOT).tolist() == [0, 2, 4, 5, 8, 10]
    assert document_bounds(rows[:1, :2], EOT).tolist() == [0, 2]


@gpu
def test_attention_by_bounds_is_attention_by_mask():
    found = {}
    for chosen in (False, True):
        model = Pretrainer(build_llama(SIZES["125m"], VOCABULARY, 512, seed=1), EOT).cuda().bfloat16()
        if chosen:
            choose_attention(model.llama, torch.device("cuda"), "bf16")
        rows = torch.randint(0, 128, (3, 512), generator=torch.Generator().manual_seed(2)).cuda()
        loss, _ = model(rows)
        loss.backward()
        found[chosen] = loss.item(), torch.cat([each.grad.flatten() for each in model.parameters()])
    (loss, gradient), (other_loss, other_gradient) = found[False], found[True]
    assert other_loss == pytest.approx(loss, rel=2e-3)
    assert (gradient - other_gradient).norm() < 0.02 * gradient.norm()


def test_equal_seeds_give_equal_weights_and_leave_the_global_random_state_alone():
    state = torch.get_rng_state()
    first, again, other = pretrainer(seed=5), pretrainer(seed=5), pretrainer(seed=6)
    assert torch.equal(torch.get_rng_state(), state)
    pairs = zip(first.state_dict().values(), again.state_dict().values(), strict=True)
    assert all(torch.equal(one, two) for one, two in pairs)
    assert not torch.equal(first.llama.lm_head.weight, other.llama.lm_head.weight)


@pytest.mark.parametrize("name", ["12k", "98k", "780k"])
def test_a_fresh_model_knows_nothing(name):
    rows = torch.randint(1, 128, (4, 65), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert pretrainer(name)(rows)[0].item() == pytest.approx(torch.tensor(128.0).log().item(), rel=0.08)


def test_the_loss_is_transformers_own_when_no_document_begins_in_the_row():
    model = pretrainer()
    rows = torch.randint(1, 128, (3, 33), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        reference = model.llama(rows, labels=rows).loss
        for by_row in (False, True):
            mean, row_nats = model(rows, by_row=by_row)
            torch.testing.assert_close(mean, reference, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(row_nats.sum().float() / (3 * 32), reference, atol=1e-5, rtol=1e-5)


def test_the_loss_of_a_row_is_that_of_the_row_alone_and_leaves_the_gradient_as_it_is():
    model = pretrainer()
    rows = torch.randint(1, 128, (3, 33), generator=torch.Generator().manual_seed(0))
    mean, row_nats = model(rows)
    assert not row_nats.requires_grad
    for row, nats in zip(rows, row_nats, strict=True):
        torch.testing.assert_close(model(row[None])[0].double() * 32, nats, atol=1e-4, rtol=1e-5)
    mean.backward()
    gradient = model.llama.lm_head.weight.grad.clone()
    model.zero_grad()
    model.llama(rows, labels=rows).loss.backward()
    torch.testing.assert_close(gradient, model.llama.lm_head.weight.grad, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize(("positions", "vocabulary"), [(1, 300_000), (1000, 2048), (513, 1024)])
def test_cross_entropy_and_its_gradients_equal_the_plain_ones(positions, vocabulary):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(positions, 16, generator=generator, requires_grad=True)
    weight = torch.randn(vocabulary, 16, generator=generator, requires_grad=True)
    targets = torch.randint(0, vocabulary, (positions,), generator=generator)
    plain = F.cross_entropy(hidden @ weight.T, targets, reduction="sum")
    expected = torch.autograd.grad(plain / positions, (hidden, weight))
    loss = summed_cross_entropy(hidden, weight, targets)
    found = torch.autograd.grad(loss / positions, (hidden, weight))
    torch.testing.assert_close(loss, plain, atol=0, rtol=1e-5)
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two, atol=1e-6, rtol=1e-4)


def test_cross_entropy_of_bfloat16_is_not_rounded_to_bfloat16():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(256, 16, generator=generator).bfloat16()
    weight = torch.randn(512, 16, generator=generator).bfloat16()
    targets = torch.randint(0, 512, (256,), generator=generator)
    exact = F.cross_entropy((hidden.double() @ weight.double().T), targets, reduction="sum")
    assert summed_cross_entropy(hidden, weight, targets).item() == pytest.approx(exact.item(), rel=1e-3)


def test_a_loss_that_nobody_takes_a_gradient_of_is_told_in_full():
    """Training counts a prediction that was next to impossible as 87 nats; an evaluation must not."""
    hidden, targets = torch.tensor([[1.0, 0.0]]), torch.tensor([0])
    weight = torch.nn.Parameter(torch.tensor([[0.0, 0.0], [200.0, 0.0]]))
    assert summed_cross_entropy(hidden, weight, targets).item() == pytest.approx(87.3, abs=0.1)
    with torch.no_grad():
        assert summed_cross_entropy(hidden, weight, targets).item() == 200.0


def test_only_counted_predictions_are_in_the_loss_and_its_gradient():
    model = pretrainer()
    rows = torch.stack([torch.cat(documents(9, 14, 6)), torch.cat(documents(14, 9, 6))])
    counted = torch.zeros(2, 31, dtype=torch.bool)
    counted[0, [3, 4, 12]] = True
    counted[1, 30] = True
    loss, nats = model(rows, counted=counted)
    loss.backward()
    gradient = model.llama.lm_head.weight.grad.clone()
    model.zero_grad()
    logits = model.logits(rows[:, :-1])
    each = F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), reduction="none").view(2, 31)
    plain = (each * counted).sum() / 4
    plain.backward()
    torch.testing.assert_close(loss, plain.detach(), **TOLERANCE)
    torch.testing.assert_close(nats, (each * counted).sum(dim=1).detach().double(), **TOLERANCE)
    torch.testing.assert_close(gradient, model.llama.lm_head.weight.grad, **TOLERANCE)
    half, _ = model(rows, counted=counted, counted_tokens=8.0)
    torch.testing.assert_close(half, loss / 2, **TOLERANCE)


def test_a_row_without_a_counted_prediction_has_no_loss_and_no_gradient():
    model = pretrainer()
    rows = torch.cat(documents(9, 14, 6))[None]
    loss, nats = model(rows, counted=torch.zeros(1, 31, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert nats.tolist() == [0]
    assert all(each.grad is None or not each.grad.any() for each in model.parameters())

import torch

from u1_core.train.one_piece import BLOCK, OnePiece
from u1_core.train.optimizers import _zero_in_place


def leaves() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in ((3, 5), (BLOCK,), (7,))]


def test_leaves_keep_their_values_and_each_begins_a_block():
    own, before = leaves(), [leaf.detach().clone() for leaf in leaves()]
    piece = OnePiece(own)
    assert all(torch.equal(a, b) for a, b in zip(own, before, strict=True))
    assert piece.parameter.shape == (3 * BLOCK,)
    starts = [(leaf.data_ptr() - piece.parameter.data_ptr()) // 4 for leaf in own]
    assert starts == [0, BLOCK, 2 * BLOCK]
    assert all(leaf.is_leaf and leaf.requires_grad for leaf in own)


def test_an_optimizer_of_the_piece_does_what_one_of_the_leaves_does():
    apart, together = leaves(), leaves()
    piece = OnePiece(together)
    optimizers = torch.optim.AdamW(apart, lr=0.1), torch.optim.AdamW([piece.parameter], lr=0.1)
    _zero_in_place(optimizers[1], [piece])
    for step in range(3):
        for tensors, optimizer in zip((apart, together), optimizers, strict=True):
            for _ in range(2):  # gradients add up
                sum((step + 1) * leaf.sin().sum() for leaf in tensors).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert all(torch.equal(a, b) for a, b in zip(apart, together, strict=True))
    assert piece.parameter.grad is not None
    assert not piece.parameter.grad.any()
    assert together[0].grad.data_ptr() == piece.parameter.grad.data_ptr()


def test_what_is_copied_into_a_leaf_is_in_the_piece():
    own = leaves()
    piece = OnePiece(own)
    with torch.no_grad():
        own[2].copy_(torch.arange(7.0))
    assert piece.parameter[2 * BLOCK : 2 * BLOCK + 7].tolist() == list(range(7))

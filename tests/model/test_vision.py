import torch

from u1_core.model.config import VISION, VISION_GEN
from u1_core.model.pixels import to_patches
from u1_core.model.understanding import embed_picture
from u1_core.model.vision import embed_patches


def picture(config, rows: int, columns: int, seed: int = 0, batch: int = 1) -> torch.Tensor:
    """Noise (B, 3, H, W) of rows x columns tokens."""
    side = config.token_pixels
    return torch.randn(batch, 3, rows * side, columns * side, generator=torch.Generator().manual_seed(seed))


def test_equals_two_convolutions_with_rope_between(kind, tiny, slow, close):
    model = tiny(kind)
    x = picture(model.config, 2, 3)
    ours = embed_patches(model.config, model.generation.modules, VISION_GEN, to_patches(x, model.config.patch_size))
    assert ours.shape == (1, 6, 64)
    assert close(ours[0], slow(kind).see(VISION_GEN, x[0]))


def test_towers_have_weights_of_their_own(tiny, slow, close):
    model = tiny("u1")
    x = picture(model.config, 3, 2)
    patches = to_patches(x, model.config.patch_size)
    ours = embed_picture(model.config, model.understanding, patches[0])
    assert close(ours, slow("u1").see(VISION, x[0]))
    assert not close(ours, slow("u1").see(VISION_GEN, x[0]), 0.1)


def test_pictures_of_a_batch_do_not_mix(tiny):
    model = tiny("u1")
    patches = to_patches(picture(model.config, 2, 2, batch=3), model.config.patch_size)
    together = embed_patches(model.config, model.generation.modules, VISION_GEN, patches)
    for row in range(3):
        alone = embed_patches(model.config, model.generation.modules, VISION_GEN, patches[row : row + 1])
        torch.testing.assert_close(together[row], alone[0], rtol=1e-5, atol=1e-6)


def test_equal_patches_differ_by_their_place(tiny, close):
    """Without the rotation, a flat picture would give the same token everywhere."""
    model = tiny("u1")
    flat = torch.full((1, 3, 24, 24), 0.5)
    patches = to_patches(flat, model.config.patch_size)
    tokens = embed_patches(model.config, model.generation.modules, VISION_GEN, patches)[0]
    distances = torch.cdist(tokens, tokens) + torch.eye(9) * 1e9
    assert distances.min() > 1e-3 * tokens.norm(dim=1).mean()

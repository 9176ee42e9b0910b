import torch

from u1_core.model.pixels import from_output_patches, to_patches


def test_patches_are_channel_row_column():
    x = torch.arange(2 * 3 * 8 * 12).reshape(2, 3, 8, 12)
    patches = to_patches(x, 4)
    assert patches.shape == (2, 2, 3, 48)
    for row in range(2):
        for column in range(3):
            block = x[1, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
            assert patches[1, row, column].tolist() == block.flatten().tolist()


def test_output_patches_are_row_column_channel():
    patches = torch.arange(2 * 6 * 48).reshape(2, 6, 48)
    x = from_output_patches(patches, 2, 3)
    assert x.shape == (2, 3, 8, 12)
    for token in range(6):
        top, left = 4 * (token // 3), 4 * (token % 3)
        for i in range(4):
            for j in range(4):
                assert x[1, :, top + i, left + j].tolist() == patches[1, token, 3 * (4 * i + j) :][:3].tolist()


def test_there_and_back():
    x = torch.randn(2, 3, 16, 24)
    turned = to_patches(x, 8).unflatten(-1, (3, 8, 8)).permute(0, 1, 2, 4, 5, 3)
    assert torch.equal(from_output_patches(turned.flatten(-3).flatten(1, 2), 2, 3), x)

"""The published models' dimensions: the same as their config.json, and the counts that follow."""

import pytest

from u1_core.errors import U1Error
from u1_core.model.config import U1Config, tensor_shapes
from u1_core.released import RELEASED, released_config

FILES = {"U1-8B": "config_u1_8b.json", "U1.5-8B": "config_u15_8b.json", "U1-A3B": "config_u1_a3b.json"}


@pytest.mark.parametrize("name", RELEASED)
def test_equals_the_published_config(name, shared):
    assert released_config(name) == U1Config.from_file(shared / "u1" / FILES[name])


def test_number_of_tensors_and_kinds():
    shapes = {name: tensor_shapes(released_config(name)) for name in RELEASED}
    assert len(shapes["U1-8B"]) == len(shapes["U1.5-8B"]) == 1116
    assert [released_config(name).kind for name in RELEASED] == ["u1", "u1.5", "a3b"]


def test_unknown_name_is_pointed_at_the_nearest():
    with pytest.raises(U1Error, match=r"there is no published model 'U1-8b'; did you mean 'U1-8B'\?"):
        released_config("U1-8b")

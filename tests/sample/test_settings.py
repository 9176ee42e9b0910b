import pytest

from u1_core.errors import U1Error
from u1_core.sample.settings import SampleSettings


def test_defaults_are_the_released_models():
    settings = SampleSettings()
    assert settings.shape == (1, 3, 2048, 2048)
    assert (settings.steps, settings.shift, settings.t_eps, settings.guidance.cfg_scale) == (50, 3.0, 0.02, 4.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 100}, "width 100 is not a multiple of 8; try 96 or 104"),
        ({"height": 3}, "height 3 is not a multiple of 8; try 8 or 16"),
        ({"width": 0}, "width 0 is not a multiple of 8; try 8 or 16"),
        ({"width": -8}, "width -8 is not a multiple of 8; try 8 or 16"),
        ({"steps": 0}, "steps 0 must be above 0"),
        ({"batch": -1}, "batch -1 must be above 0"),
        ({"shift": 0.0}, "shift 0.0 must be above 0"),
    ],
)
def test_refused(tiny, changes, message):
    with pytest.raises(U1Error) as raised:
        SampleSettings(**({"width": 64, "height": 64} | changes)).check(tiny("u1").config)
    assert str(raised.value) == message


def test_whole_tokens_pass(tiny):
    SampleSettings(width=104, height=8, steps=1).check(tiny("u1").config)

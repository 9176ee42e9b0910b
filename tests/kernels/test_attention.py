import pytest
import torch
from torch.nn.attention import SDPBackend

from u1_core.kernels import attention


@pytest.mark.skipif(not torch.cuda.is_available(), reason="kernels are chosen on a card")
@pytest.mark.parametrize("backward", [False, True])
def test_the_quickest_that_work_come_first_and_what_is_under_way_sees_nothing_of_it(backward):
    saved = []
    attention.backends.cache_clear()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        found = attention.backends(torch.device("cuda:0"), torch.bfloat16, 8, 2, 64, backward)
    assert not saved
    assert found[-1][0] is SDPBackend.MATH
    assert [seconds for _, seconds in found] == sorted(seconds for _, seconds in found)
    assert 0 < found[0][1] < 1


def test_nothing_is_tried_on_a_cpu_or_for_a_few_queries():
    attention.backends.cache_clear()
    q = torch.zeros(1, 2, attention.SHORTEST, 8, requires_grad=True)
    with attention.quickest(q, q):
        pass
    assert attention.backends.cache_info().misses == 0

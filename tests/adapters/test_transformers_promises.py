"""What every family promises, kept by the diffusion transformers."""

import pytest
import tiny_transformers as tiny

from voxplain.adapters.base import as_adapter
from voxplain.testing import check_adapter

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:diffusers")


@pytest.mark.parametrize("make", [tiny.pixart, tiny.sd3, tiny.flux])
def test_transformers_keep_all_promises(make):
    assert len(check_adapter(as_adapter(make(), size=(16, 24), max_sequence_length=14))) == 17


def test_sana_keeps_all_promises():
    assert len(check_adapter(as_adapter(tiny.sana(), size=(32, 64), max_sequence_length=14))) == 17

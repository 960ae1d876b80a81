"""What holds for every test: one thread a worker, no screen, no network, drawn inputs that come out the same again."""

import os
import socket

os.environ.update(
    OMP_NUM_THREADS="1",  # xdist's workers share the cores; torch reads this when it is first imported
    MPLBACKEND="Agg",
    HF_HUB_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
)

import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

settings.register_profile("voxplain", deadline=None, derandomize=True, database=None, max_examples=50)
settings.load_profile("voxplain")

LOOPBACK = ("127.", "::1", "localhost")


@pytest.fixture(scope="session", autouse=True)
def no_network():
    """Refuse every connection that leaves this machine: models are built in the test, or ship with us."""
    connect = socket.socket.connect

    def guarded(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6) and not str(address[0]).startswith(LOOPBACK):
            raise OSError(f"a test tried to reach {address[0]}; tests reach no network")
        return connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded)
        yield


def pytest_collection_modifyitems(items):
    """Skip what needs a GPU on a machine that has none."""
    wanting = [item for item in items if item.get_closest_marker("gpu")]
    if not wanting:
        return
    import torch

    if not torch.cuda.is_available():
        for item in wanting:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and none is here"))

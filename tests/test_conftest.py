"""The guards of the suite itself can fail."""

import socket

import numpy as np
import pytest

from voxplain.arrays import active_mean, top_level


def test_a_test_that_reaches_for_the_network_is_stopped():
    with socket.socket() as outside, pytest.raises(OSError, match="tests reach no network"):
        outside.connect(("192.0.2.1", 80))


def test_a_test_may_talk_to_its_own_machine():
    with socket.socket() as server, socket.socket() as client:
        server.bind(("127.0.0.1", 0))
        server.listen()
        client.connect(server.getsockname())
        assert client.getpeername() == server.getsockname()


def test_an_array_with_the_wrong_axes_is_refused_while_tests_run():
    words, cells = np.ones((2, 3), np.float32), np.ones(3, np.int64)
    assert active_mean(words, 1).shape == (3,)  # and an int may stand for a float
    with pytest.raises(TypeError, match="Type-check error"):
        top_level(cells, 0.5)

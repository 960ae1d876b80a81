import base64
import hashlib
import json
import re
import socket

import pytest
from synthetic import explained

from voxplain.serve import offline, page
from voxplain.serve.notebook import show
from voxplain.serve.starting import bound

HTML = "</script><script>alert(2)</script> <!-- effusion in the left lung"


@pytest.fixture(scope="module", params=[(8, 12, 16), (12, 16)], ids=["volume", "image"])
def made(request):
    return offline.interactive(explained(request.param, text=HTML), "a run")


def test_the_file_holds_everything_and_asks_for_nothing(made):
    assert not re.search(r'<(?:link|script|img|iframe)[^>]+(?:src|href)="(?!data:)', made)
    assert len(made) < 6e6
    volumes = json.loads(re.search(r'id="data-volumes">(.*?)</script>', made, re.DOTALL)[1])
    case = json.loads(re.search(r'id="data-case">(.*?)</script>', made, re.DOTALL)[1])
    assert case["prompt"] == HTML
    expected = {f"{recipe}/{word['label']}" for word in case["words"] for recipe in word["recipes"]}
    assert expected | {"sample", "mean/[padding]"} <= set(volumes)


def test_each_script_is_named_by_its_hash_and_no_other_can_run(made):
    policy = re.search(r'http-equiv="content-security-policy" content="([^"]+)"', made)[1]
    assert "unsafe" not in policy
    codes = re.findall(r"<script>(.*?)</script>", made, re.DOTALL)
    assert len(codes) == len(page.SCRIPTS)
    for code in codes:
        digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    assert "alert(2)</script>" not in made  # the prompt does not end its block


def test_a_notebook_gets_a_frame_with_the_page_in_it_and_a_picture():
    frame = show(explained(text=HTML))
    html = frame._repr_html_()
    assert html.count("<iframe") == 1
    assert "<script" not in html  # all of the page is in the attribute
    assert html.endswith("</iframe>")
    assert frame._repr_png_().startswith(b"\x89PNG")
    assert "no segmentation" in repr(frame)
    with pytest.raises(ValueError, match="200"):
        show(explained(), height=10)


def test_a_port_in_use_is_said_with_the_cure():
    with bound("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match="--port 0"), bound("127.0.0.1", port):
            pass
    with bound("127.0.0.1", 0) as free:
        assert isinstance(free, socket.socket)

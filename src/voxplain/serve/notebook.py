"""The viewer in a notebook: a frame with the whole page in it, so that it survives the export to HTML."""

from dataclasses import dataclass, field
from html import escape

from voxplain.maps import CAVEAT, Explanation
from voxplain.serve.offline import interactive, still


@dataclass(frozen=True, eq=False)
class Frame:
    """What `show` gives: notebooks draw the page, other front ends the picture or the text."""

    explanation: Explanation = field(repr=False)
    height: int

    def _repr_html_(self) -> str:
        page = escape(interactive(self.explanation), quote=True)
        style = f"width: 100%; height: {self.height}px; border: 0; border-radius: 8px"
        return f'<iframe srcdoc="{page}" style="{style}" title="Voxplain viewer"></iframe>'

    def _repr_png_(self) -> bytes:
        return still(self.explanation)

    def __repr__(self) -> str:
        return f"<viewer of {self.explanation.prompt.text!r}; {CAVEAT}>"


def show(explanation: Explanation, *, height: int = 720) -> Frame:
    """The interactive viewer of an explanation, `height` pixels high, for the last line of a notebook's cell."""
    if height < 200:
        raise ValueError(f"height {height}: the viewer needs 200 pixels at least")
    return Frame(explanation, height)

"""What every metric shares: the way to say that a case has no answer."""


class Undefined(ValueError):
    """A metric has no value for this case; `reason` is a short, countable text."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

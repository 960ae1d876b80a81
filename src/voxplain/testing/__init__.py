"""Whether an adapter keeps the promises of its kind, and what it adapts."""

from voxplain.testing.facts import describe
from voxplain.testing.promises import ATTENTION, GENERAL, PROMPTS, SINGLE_KEY, check_adapter, verdicts

__all__ = ["ATTENTION", "GENERAL", "PROMPTS", "SINGLE_KEY", "check_adapter", "describe", "verdicts"]

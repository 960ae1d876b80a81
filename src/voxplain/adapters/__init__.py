"""Families of models, each behind the same interface."""

from voxplain.adapters.base import Adapter, Run, Step, as_adapter

__all__ = ["Adapter", "Run", "Step", "as_adapter"]

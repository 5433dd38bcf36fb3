"""What a run will be, from config.json alone: arithmetic on shapes, nothing loaded."""

from tunesmith.plan.activations import activation_bytes_per_token
from tunesmith.plan.parameters import ParameterCounts, can_count, count_parameters

__all__ = ["ParameterCounts", "activation_bytes_per_token", "can_count", "count_parameters"]

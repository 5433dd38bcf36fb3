"""What a run will be, from config.json alone: arithmetic on shapes, nothing loaded."""

from tunesmith.planning.activations import activation_bytes, native_activation_bytes
from tunesmith.planning.parameters import ParameterCounts, can_count, count_parameters

__all__ = ["ParameterCounts", "activation_bytes", "can_count", "count_parameters", "native_activation_bytes"]

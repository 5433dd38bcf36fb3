"""What a run will be, from config.json alone: arithmetic on shapes, nothing loaded."""

from tunesmith.planning.activations import activation_bytes, native_activation_bytes
from tunesmith.planning.budget import MicroBatchLimits, activation_budget_bytes, micro_batch_limits
from tunesmith.planning.parameters import ParameterCounts, can_count, count_parameters

__all__ = ["MicroBatchLimits", "ParameterCounts", "activation_budget_bytes", "activation_bytes", "can_count",
           "count_parameters", "micro_batch_limits", "native_activation_bytes"]

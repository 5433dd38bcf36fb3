"""Did it help? Held-out loss, samples, the stop rate, the verdict; `report` shows them."""

from tunesmith.judge.verdict import Judgement, judge, mean_validation_loss

__all__ = ["Judgement", "judge", "mean_validation_loss"]

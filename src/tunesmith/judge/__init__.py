"""Did it help? Held-out loss, samples, the stop rate, the verdict, and the report that shows them."""

from tunesmith.judge.report import write_report
from tunesmith.judge.verdict import Judgement, judge, mean_held_out_loss

__all__ = ["Judgement", "judge", "mean_held_out_loss", "write_report"]

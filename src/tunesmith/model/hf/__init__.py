"""Any causal language model, through transformers + peft + bitsandbytes: the reference engine."""

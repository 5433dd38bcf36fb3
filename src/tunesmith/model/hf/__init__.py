"""Any causal language model, through transformers + peft + bitsandbytes: the reference engine."""

from tunesmith.model.libraries import import_bitsandbytes

import_bitsandbytes()  # before peft and transformers import it their way

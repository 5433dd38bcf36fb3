"""What a run imports: nothing that takes seconds and that it does not need."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

#: What each costs is seconds: torch's compiler, and what brings it along. A native run never needs it.
NEVER = ["bitsandbytes", "peft", "accelerate", "sklearn", "datasets", "torch._dynamo", "torch._inductor",
         "transformers.generation.utils", "transformers.modeling_utils",
         "transformers.models.bloom.modeling_bloom"]
#: The report's.
LATE = ["altair"]  # charts are drawn in a process of its own, which imports vl_convert

SCRIPT = """
import json, sys
import tunesmith

class Look:
    seen = {}

    def stage(self, text): pass
    def note(self, text): pass
    def facts(self, facts): self.look("facts"); print(facts.engine, facts.dtype, file=sys.stderr)
    def step(self, record, total_steps): self.look(f"step {record['step']}")
    def look(self, when): self.seen[when] = sorted(set(NAMES) & set(sys.modules))

NAMES, (recipe, run, *overrides) = json.loads(sys.argv[1]), sys.argv[2:]
tunesmith.train(recipe, run=run, overrides=["train.engine=native", "model.device=cpu", *overrides],
                show=Look())
Look().look("end")
print(json.dumps(Look.seen))
"""


@pytest.mark.parametrize("quantization", ["int8", "none"])
def test_a_native_run_imports_neither_bitsandbytes_nor_torch_s_compiler(
    recipe: Path, quantization: str, tmp_path: Path
) -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT, json.dumps(NEVER + LATE), str(recipe),
                           str(tmp_path / "run"), f"model.quantization={quantization}", "train.max_steps=2"],
                          capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("native float32")
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert json.loads(done.stdout) == {"facts": [], "step 1": [], "step 2": [], "end": LATE}
    assert (
        json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())["peft_type"] == "LORA"
    )

"""`tunesmith doctor`: what this machine has, what works on it, what to install."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
from collections.abc import Callable
from functools import partial
from typing import Any

from tunesmith.model.quantization import WAYS, Way


def doctor() -> dict[str, Any]:
    """Try what a run needs.

    Returns machine, versions, gpus, hub, disk_free_bytes, and `checks`: name, works, detail and advice of
    each. `healthy` is whether everything a run on this machine needs works.
    """
    from tunesmith.verbs.manifest import describe_machine, gpu_names, library_versions

    quantised = [way for way in WAYS.values() if way.quantised]
    checks = [_check("torch computes", _torch, "Reinstall: pip install 'torch>=2.11'"),
              *(_check(f"{way.name} on CPU (bitsandbytes)", partial(_quantised, way, "cpu"),
                       "pip install -U bitsandbytes")
                for way in quantised),
              _check("the embedded base", _embedded, "Reinstall tunesmith: its files are not whole.")]
    gpus = []
    for index in range(len(gpu_names())):
        import torch

        properties = torch.cuda.get_device_properties(index)
        gpus.append({"name": properties.name, "memory_bytes": properties.total_memory,
                     "capability": f"{properties.major}.{properties.minor}",
                     "bfloat16": torch.cuda.is_bf16_supported(including_emulation=False)})
        checks += [*(_check(f"{way.name} on cuda:{index}", partial(_quantised, way, f"cuda:{index}"),
                            "bitsandbytes has no library for this CUDA: pip install -U bitsandbytes")
                     for way in quantised),
                   _check(f"fast kernels on cuda:{index}", partial(_kernels, f"cuda:{index}"),
                          "Triton is missing (pip install triton), or this GPU is older than compute "
                          "capability 8.0; the native engine then goes the plain way.")]
    return {"machine": describe_machine(), "versions": library_versions(), "gpus": gpus, "hub": _hub(),
            "disk_free_bytes": shutil.disk_usage(".").free, "checks": checks,
            "healthy": all(check["works"] or check["name"].startswith("fast kernels") for check in checks)}


def _check(name: str, attempt: Callable[[], str], advice: str) -> dict[str, Any]:
    try:
        return {"name": name, "works": True, "detail": attempt(), "advice": ""}
    except Exception as error:  # a doctor reports whatever is broken and goes on
        reason = (str(error).splitlines() or [""])[0]
        return {"name": name, "works": False, "detail": f"{type(error).__name__}: {reason}", "advice": advice}


def _torch() -> str:
    import torch

    product = torch.ones(8, 8) @ torch.ones(8, 8)
    if product[0, 0].item() != 8:
        raise ArithmeticError("a product of ones came out wrong")
    return f"{torch.get_num_threads()} threads"


def _quantised(way: Way, device: str) -> str:
    """Run a quantised layer forward and back; returns the relative error against the exact product."""
    import torch

    torch.manual_seed(0)
    exact = torch.nn.Linear(64, 64, bias=False)
    layer = way.layer(64, 64)
    layer.load_state_dict(exact.state_dict())
    layer = layer.to(device)
    way.prepare(layer)
    layer.requires_grad_(False)
    x = torch.randn(4, 64, device=device, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    with torch.no_grad():
        expected = exact.to(device)(x)
    error = ((y - expected).norm() / expected.norm()).item()
    if not error < 0.2 or x.grad is None or not torch.isfinite(x.grad).all():
        raise ArithmeticError(f"relative error {error:.3f}")
    return f"relative error {error:.4f}"


def _kernels(device: str) -> str:
    """Compile one of the native engine's kernels and compare it with its plain twin."""
    import torch

    from tunesmith.model.native.kernels.dispatch import use_triton
    from tunesmith.model.native.kernels.norm import add_norm, add_norm_plain

    x = torch.randn(8, 256, device=device)
    if not use_triton(x):
        raise RuntimeError("Triton does not run here")
    weight = torch.ones(256, device=device)
    error = (add_norm(x, x, None, weight, None,
                      1e-5)[1] - add_norm_plain(x, x, None, weight, None, 1e-5)[1]).abs().max().item()
    if not error < 1e-4:
        raise ArithmeticError(f"error {error:.3g}")
    return f"error {error:.2g}"


def _embedded() -> str:
    import json

    from tunesmith import embedded
    from tunesmith.model.files import locate_base
    from tunesmith.rundir.seal import sha256_file

    base = locate_base(embedded.BASE_NAME, None)
    about = json.loads((base.folder / "about.json").read_text(encoding="utf-8"))
    if sha256_file(base.weights[0]) != about["weights_sha256"]:
        raise ValueError("its weights are not as they were made")
    return f"{about['parameters']:,} parameters, {base.weight_bytes() / 1e6:.1f} MB"


def _hub() -> dict[str, Any]:
    import huggingface_hub
    from huggingface_hub import constants

    return {"client": importlib.metadata.version("huggingface_hub"), "endpoint": constants.ENDPOINT,
            "offline": bool(constants.HF_HUB_OFFLINE), "cache": constants.HF_HUB_CACHE,
            "logged_in": bool(huggingface_hub.get_token()),
            "token_from_environment": bool(os.environ.get("HF_TOKEN"))}

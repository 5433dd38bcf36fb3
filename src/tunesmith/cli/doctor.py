"""`tunesmith doctor`."""

from __future__ import annotations

from tunesmith.cli.common import Json, Quiet, run_verb
from tunesmith.cli.texts import doctor_text
from tunesmith.errors import EnvironmentFault


def doctor(as_json: Json = False, quiet: Quiet = False) -> None:
    """What this machine has, what works, what to install."""
    import tunesmith

    run_verb(lambda terminal: tunesmith.doctor(), doctor_text, as_json=as_json, quiet=quiet,
             exit_code=lambda result: 0 if result["healthy"] else EnvironmentFault.exit_code)

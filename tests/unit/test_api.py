from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import tunesmith

VERBS = ["demo", "doctor", "evaluate", "export", "generate", "init", "inspect", "merge", "plan", "pull",
         "push", "train", "verify"]


def test_the_public_api_is_the_verbs() -> None:
    assert sorted(tunesmith.__all__) == sorted([*VERBS, "TunesmithError"])
    for name in VERBS:
        function = getattr(tunesmith, name)
        assert inspect.isfunction(function), name
        assert function.__doc__
        assert name in dir(tunesmith)
    with pytest.raises(AttributeError):
        tunesmith.nothing  # noqa: B018


def test_no_package_has_the_name_of_a_verb() -> None:
    packages = {path.parent.name for path in Path(tunesmith.__file__).parent.glob("*/__init__.py")}
    assert not packages & set(VERBS)
    from tunesmith import plan, train

    assert inspect.isfunction(plan)
    assert inspect.isfunction(train)


@pytest.mark.parametrize("code", ["import tunesmith", "import tunesmith.cli.main",
                                  "import tunesmith.recipe, tunesmith.rundir, tunesmith.planning"])
def test_nothing_heavy_is_imported(code: str) -> None:
    heavy = "torch transformers peft bitsandbytes datasets numpy pandas rich altair".split()
    check = f"{code}; import sys; sys.exit(', '.join(m for m in {heavy} if m in sys.modules) or 0)"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_verb_has_its_command() -> None:
    from tunesmith.cli.main import app

    assert sorted(command.callback.__name__ for command in app.registered_commands
                  if command.callback) == VERBS


def test_each_error_has_its_own_exit_code() -> None:
    from tunesmith import errors

    codes = {cls.__name__: cls.exit_code for cls in vars(errors).values()
             if inspect.isclass(cls) and issubclass(cls, errors.TunesmithError)}
    assert codes == {"TunesmithError": 1, "UsageError": 2, "RecipeError": 3, "DivergedError": 3,
                     "DataError": 4, "EnvironmentFault": 5, "OutOfMemory": 6, "DiskError": 7,
                     "NetworkError": 8, "IntegrityError": 9, "Interrupted": 1}
    assert errors.Interrupted(2, "x").exit_code == 130
    assert errors.Interrupted(15, "x").exit_code == 143

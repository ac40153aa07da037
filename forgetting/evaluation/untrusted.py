"""A folder of lm-eval tasks is data: nothing in it runs code, or reads a task file outside of it.

lm-eval itself lets a task file name Python functions (``!function module.name``), include files from anywhere, and
renders Jinja templates that reach any Python object.
"""

from __future__ import annotations

import functools
import os.path
from pathlib import Path
from typing import Any

import yaml

from forgetting.errors import UsageError


class _TaskLoader(yaml.SafeLoader):
    """YAML in which lm-eval's ``!function`` tags are found, and not followed."""


class _CodeError(Exception):
    """Carries the function that a task file names."""


def _refuse(loader: yaml.SafeLoader, node: yaml.Node) -> Any:
    raise _CodeError(str(node.value))


_TaskLoader.add_constructor("!function", _refuse)


def check_task_folder(folder: Path) -> None:
    """Refuse a folder whose task files, or what they include, name Python functions or leave the folder.

    Args:
        folder: Searched for ``.yaml`` files as lm-eval does, with its subfolders.

    Raises:
        UsageError: naming the file, what it asks for, and how to allow it; also where a file is not YAML.
    """
    pending, seen = sorted(folder.rglob("*.yaml")), set[Path]()
    while pending:
        path = pending.pop()
        if path in seen:
            continue
        seen.add(path)
        for include in _includes(path):
            target = Path(os.path.normpath(path.parent / include))
            if not target.is_relative_to(os.path.normpath(folder)):
                raise UsageError(
                    f"suite {str(folder)!r}: {path.name} includes {include!r}, which is outside of the folder; "
                    "copy it into the folder"
                )
            pending.append(target)


def _includes(path: Path) -> list[str]:
    where = f"suite task file {str(path)!r}"
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_TaskLoader)
    except _CodeError as error:
        raise UsageError(
            f"{where}: asks for the function {str(error)!r}, which is code; where you trust the folder, "
            "set trust_remote_code (--trust-remote-code)"
        ) from None
    except OSError as error:
        raise UsageError(f"{where}: {error.strerror or error}") from None
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, LookupError, AttributeError, RecursionError) as error:
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        raise UsageError(f"{where}: not YAML: {problem[:200]}") from None
    named = content.get("include", []) if isinstance(content, dict) else []
    return [str(include) for include in (named if isinstance(named, list) else [named])]


@functools.cache
def sandbox_templates() -> None:
    """Make lm-eval render its templates in Jinja's sandbox, for this process: they show documents, and reach no more.

    Templates that stay within what a document holds render as before.
    """
    import lm_eval.utils
    from jinja2.sandbox import SandboxedEnvironment

    open_environment = lm_eval.utils.env
    sandbox = SandboxedEnvironment(
        loader=open_environment.loader,
        undefined=open_environment.undefined,
        keep_trailing_newline=open_environment.keep_trailing_newline,
    )
    sandbox.filters.update(open_environment.filters)
    lm_eval.utils.env = sandbox

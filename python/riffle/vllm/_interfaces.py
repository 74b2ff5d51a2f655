"""Looks at vLLM's interfaces before anything is put in their place."""

from __future__ import annotations

import functools
import importlib
import inspect
import logging
import sys
from collections.abc import Callable
from typing import Any


class InterfaceMismatch(Exception):
    """vLLM lacks the interface that a part of Riffle was written for."""


def find(module: str, *path: str) -> Any:
    """The object `path` of `module`. Raises InterfaceMismatch, naming what is missing."""
    try:
        found: Any = importlib.import_module(module)
        for name in path:
            found = getattr(found, name)
    except (ImportError, AttributeError) as error:
        raise InterfaceMismatch(f"no {'.'.join((module, *path))}") from error
    return found


def expect_parameters(function: Callable[..., Any], *names: str) -> None:
    """Raises InterfaceMismatch unless these are the first parameters of `function`, in this order."""
    have = list(inspect.signature(function).parameters)[: len(names)]
    if have != list(names):
        raise InterfaceMismatch(f"{function.__qualname__}({', '.join(have)}), not ({', '.join(names)})")


def wrap_classmethod(owner: type, name: str, wrapper: Callable[..., Any]) -> None:
    """Makes owner.name(...) call wrapper(original, ...) instead; `original` is the method that was there, bound to the same class."""
    inner = inspect.getattr_static(owner, name).__func__

    @functools.wraps(inner)
    def outer(cls: type, *args: Any, **kwargs: Any) -> Any:
        return wrapper(functools.partial(inner, cls), *args, **kwargs)

    setattr(owner, name, classmethod(outer))


def expect_attributes(cls: type, *names: str) -> None:
    """Raises InterfaceMismatch unless the constructor of `cls` sets or reads these attributes."""
    constructor = inspect.unwrap(cls.__init__)
    seen = constructor.__code__.co_names if inspect.isfunction(constructor) else ()
    missing = [name for name in names if name not in seen]
    if missing:
        raise InterfaceMismatch(f"{cls.__qualname__} has no {', '.join(missing)}")


def replace_function(native: Callable[..., Any], replacement: Callable[..., Any]) -> None:
    """Puts `replacement` in the place of a function of vLLM, in each of its modules that has imported it by name too."""
    for module in [module for name, module in sys.modules.items() if name.startswith("vllm.")]:
        if vars(module).get(native.__name__) is native:
            setattr(module, native.__name__, replacement)


@functools.cache
def warn(text: str) -> None:
    """A warning in vLLM's log, once for each text."""
    logging.getLogger("vllm.riffle").warning("riffle: %s", text)


@functools.cache
def inform(text: str) -> None:
    """A line in vLLM's log, once for each text."""
    logging.getLogger("vllm.riffle").info("riffle: %s", text)

"""Which parts of vLLM run on Riffle, and the line in the log that says so."""

from __future__ import annotations

import importlib
import logging
import os

# The parts, in the order in which they are installed. Each is a module _NAME with `install() -> str | None`, which returns
# None when the part is on; otherwise the reason why it is left to vLLM.
PARTS = ("attention", "mla", "sparse", "sampler")

# Versions that `make test-vllm` ran with.
TRIED = ("0.32.0",)

_logger = logging.getLogger("vllm.riffle")
_registered = False
_active_parts: list[str] = []  # the parts that are on


def wanted(setting: str | None) -> list[str]:
    """The parts that RIFFLE_VLLM names: all by default and for "1", none for "0", or a list such as "attention,sampler"."""
    setting = (setting or "1").strip().lower()
    if setting in ("0", "off", "none", "false"):
        return []
    if setting in ("1", "on", "all", "true"):
        return list(PARTS)
    names = [name.strip() for name in setting.split(",") if name.strip()]
    unknown = [name for name in names if name not in PARTS]
    if unknown:
        _logger.warning("riffle: RIFFLE_VLLM names %s; the parts are %s", ", ".join(unknown), ", ".join(PARTS))
    return [name for name in PARTS if name in names]


def register() -> None:
    """vLLM's entry point. Installs the parts that are wanted and never raises: what fails is left to vLLM."""
    global _registered
    if _registered:
        # A worker that was forked has its own threads.
        if _active_parts:
            use_pytorch_threads()
        return
    _registered = True
    _configure_logging()
    parts = wanted(os.environ.get("RIFFLE_VLLM"))
    if not parts:
        _logger.info("riffle: off (RIFFLE_VLLM)")
        return
    try:
        from vllm.platforms import current_platform

        on_cpu = current_platform.is_cpu()
    except Exception as error:
        _logger.warning("riffle: off; this vLLM cannot be asked for its platform: %r", error)
        return
    if not on_cpu:
        return
    left_to_vllm = {}
    for part in parts:
        try:
            reason = importlib.import_module(f"riffle.vllm._{part}").install()
        except Exception as error:
            # An engine must not fail because of a plugin. Most likely this version of vLLM lacks something that the part needs.
            reason = f"not with this version of vLLM: {error!r}"
        if reason is not None:
            left_to_vllm[part] = reason
    _active_parts.extend(part for part in parts if part not in left_to_vllm)
    if _active_parts:
        use_pytorch_threads()
    _report(_active_parts, left_to_vllm)


def use_pytorch_threads() -> None:
    """Makes Riffle run on as many threads as PyTorch has in this process. Never raises."""
    try:
        importlib.import_module("riffle.vllm._threads").use_pytorch_threads()
    except Exception as error:
        _logger.warning("riffle: not on PyTorch's threads: %r", error)


def _configure_logging() -> None:
    """Where the engine runs in the calling process vLLM loads plugins before it configures logging, and an INFO line would be lost."""
    if logging.getLogger("vllm").handlers:
        return
    try:
        from vllm.config.logging import LoggingConfig
        from vllm.logger import configure_logging_if_needed

        configure_logging_if_needed(LoggingConfig())
    except Exception as error:
        _logger.debug("riffle: logging is as it is: %r", error)


def _report(on: list[str], left_to_vllm: dict[str, str]) -> None:
    import vllm

    import riffle

    version = getattr(vllm, "__version__", "?")
    tried = "" if version in TRIED else f"; not tried with vLLM {version} but with {', '.join(TRIED)}"
    text = f"riffle {riffle.__version__}: {', '.join(on) or 'nothing'} on"
    if left_to_vllm:
        text += "; left to vLLM: " + "; ".join(f"{part} ({reason})" for part, reason in left_to_vllm.items())
    _logger.log(logging.WARNING if tried or left_to_vllm else logging.INFO, "%s%s", text, tried)

"""The names of modules in PEFT's files: its prefix, and wrappers of training, which models lack.

torch.compile puts ``_orig_mod`` into a name, FSDP ``_fsdp_wrapped_module``, checkpointing of
activations ``_checkpoint_wrapped_module``, Lightning ``_forward_module``, DDP and DeepSpeed
``module`` in front; a model that PEFT wrapped twice has its prefix twice.
"""

import re

PREFIX = "base_model.model."  # of PEFT, once

# Anywhere in a name, also where a pattern of a config spells it with an escaped dot.
_INSIDE = re.compile(
    r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)"
    r"\\?\.(?!lora_)"
)
_IN_FRONT = re.compile(r"(?:module\.(?!lora_)|base_model\.model\.)+")


def unwrapped(key: str) -> tuple[str, set[str]]:
    """Return a key without PEFT's prefix and without wrappers, and the wrappers that it had."""
    wrappers = {f"{name}." for name in _INSIDE.findall(key)}
    key = without_wrappers(key)
    in_front = _IN_FRONT.match(key)
    if in_front is None:
        return key, wrappers
    if "module." in in_front[0].replace(PREFIX, ""):
        wrappers.add("module.")
    if in_front[0].count(PREFIX) > 1:
        wrappers.add(f"a second {PREFIX}")
    return key[in_front.end() :], wrappers


def without_wrappers(text: str) -> str:
    """Return a name, or a pattern for names, without the wrappers inside it."""
    return _INSIDE.sub("", text)

"""Names of base models: when two of them mean one model."""

import re
from collections.abc import Iterable

# The ends of names of quantised copies, which mostly lie in another organisation.
_QUANTISED = re.compile(
    r"(?:[-_.]unsloth)?"
    r"(?:[-_.](?:quantized|bnb|bitsandbytes|awq|gptq|hqq|eetq|exl2|quanto|gguf|mlx|nf4"
    r"|fp8|nvfp4|mxfp4|w4a16|w8a8|w8a16|[348]-?bit|u?int[48]|q[48]|(?:32|64|128)g|g(?:32|64|128)))+"
    r"(?:[-_.]dynamic)?$"
)


def same_model(first: str, second: str) -> bool:
    """Tell whether two names mean one model up to case, a slash at the end, and quantisation."""
    a, b = _plain(first), _plain(second)
    return a == b or (_original(a) == _original(b) and (is_quantised(a) or is_quantised(b)))


def same_spelling(first: str, second: str) -> bool:
    """Tell whether two names are equal up to case and a slash at the end."""
    return _plain(first) == _plain(second)


def is_quantised(name: str) -> bool:
    """Tell whether a name is that of a quantised copy."""
    return _QUANTISED.search(_plain(name)) is not None


def common_name(names: Iterable[str | None]) -> str | None:
    """Return the one model that all known names mean, None if there is none.

    The name of the model as it was before it was quantised, if that is among them.
    """
    known = sorted((name for name in names if name is not None), key=is_quantised)
    if known and all(same_model(known[0], name) for name in known):
        return known[0]
    return None


def _plain(name: str) -> str:
    return name.rstrip("/").casefold()


def _original(name: str) -> str:
    """Return the last part of a name, without what says how it was quantised."""
    return _QUANTISED.sub("", name.rpartition("/")[2])

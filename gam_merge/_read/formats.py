"""The formats that are known, in the order in which they are asked."""

from collections.abc import Callable, Collection, Sequence
from os import PathLike
from pathlib import Path, PurePath

from gam_merge._common.errors import GamMergeError
from gam_merge._common.files import is_there
from gam_merge._read.adapter import Adapter
from gam_merge._read.diffusers import Diffusers
from gam_merge._read.format import Contents, Format
from gam_merge._read.gguf import Gguf
from gam_merge._read.kohya import Kohya
from gam_merge._read.mlx import Mlx
from gam_merge._read.peft import Peft

_DEFAULT = Peft()
FORMATS: list[Format] = [_DEFAULT, Gguf(), Mlx(), Kohya(), Diffusers()]
# How the names of files of weights end that are not written.
_NOT_WRITTEN = (".bin", ".ckpt", ".npz", ".pt", ".pth")


def recognized(
    contents_for: Callable[[Format], Contents], file_name: str | None = None
) -> tuple[Format, Contents]:
    """Return the format of some files, and the files as it finds them.

    PEFT's, which explains errors, if none fits. file_name: of the weights; a name that stands in
    directories of some formats rules the others out.
    """
    candidates = [form for form in FORMATS if file_name in form.weights_names]
    for form in candidates or FORMATS:
        contents = contents_for(form)
        if form.recognizes(contents):
            return form, contents
    form = candidates[0] if candidates else _DEFAULT
    return form, contents_for(form)


def format_names() -> list[str]:
    """Return the names of all formats."""
    return [form.name for form in FORMATS]


def format_named(name: str) -> Format:
    """Return the format of a name. Raises GamMergeError."""
    for form in FORMATS:
        if form.name == name:
            return form
    raise GamMergeError(f"format must be one of {', '.join(format_names())}, got {name!r}")


def format_of(adapters: Collection[Adapter]) -> Format:
    """Return the format that adapters share. Raises GamMergeError if they have several."""
    names = {adapter.format for adapter in adapters}
    if len(names) > 1:
        firsts = {adapter.format: adapter.source for adapter in reversed(list(adapters))}
        listed = ", ".join(f"{firsts[name]} ({name})" for name in sorted(firsts))
        raise GamMergeError(
            f"the adapters have unlike formats: {listed}; choose that of the output with --format "
            "(format=)"
        )
    return format_named(names.pop())


def output_format(
    name: str | None, adapters: Collection[Adapter], out: str | PathLike[str] | None = None
) -> Format:
    """Return the format of the output: as named, as ``out`` ends, or else that of the adapters.

    Raises GamMergeError.
    """
    suffix = "" if out is None else PurePath(out).suffix
    form: Format | None = None if name is None else format_named(name)
    if form is None:
        owners = [known for known in FORMATS if known.file_suffix == suffix]
        form = owners[0] if len(owners) == 1 else format_of(adapters)
    if out is not None:
        check_kind(form, out)
    return form


def check_kind(form: Format, out: str | PathLike[str]) -> None:
    """Raise GamMergeError for the name of a file that no reader of a format takes."""
    suffix, written = PurePath(out).suffix, file_suffixes()
    if suffix not in written and suffix.lower() in (*written, *_NOT_WRITTEN):
        raise GamMergeError(
            f"{out}: the name of a file must end with {' or '.join(written)}, got {suffix}; name "
            "such a file, or a directory"
        )
    if suffix in written and form.file_suffix != suffix:
        kind = "a directory" if form.file_suffix is None else f"a file NAME{form.file_suffix}"
        raise GamMergeError(
            f"{out}: readers of the format {form.name} take {kind}; name one, or choose another "
            "--format (format=)"
        )


def format_in(directory: Path) -> Format:
    """Return the format of the adapter that we wrote into a directory; PEFT's if there is none.

    Raises GamMergeError for a path that cannot be examined.
    """
    for form in FORMATS:
        file = directory / form.weights_names[0]
        if is_there(file) and file.is_file():
            return form
    return _DEFAULT


def file_suffixes() -> list[str]:
    """Return how the names of files end that are adapters by themselves."""
    return _unique([form.file_suffix for form in FORMATS if form.file_suffix is not None])


def weights_names() -> list[str]:
    """Return how the files of weights are called in the directories of all formats."""
    names: list[str] = []
    for form in FORMATS:
        names += form.weights_names
    return _unique(names)


def weights_names_without_config() -> list[str]:
    """Return how the files of weights are called in the directories of formats without a config."""
    names: list[str] = []
    for form in FORMATS:
        if form.config_name is None:
            names += form.weights_names
    return _unique(names)


def config_names() -> list[str]:
    """Return how the configs are called in the directories of all formats that have one."""
    return _unique([form.config_name for form in FORMATS if form.config_name is not None])


def config_names_next_to(weights: PurePath) -> list[str]:
    """Return how the config of a bare file may be called, in all formats."""
    names: list[str] = []
    for form in FORMATS:
        names += form.config_names(weights)
    return _unique(names)


def _unique(names: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(names))

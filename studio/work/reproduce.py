"""Reproducing a picture: exactly, with other settings, or compared along some of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pipelines.concepts.concept import Concept
from pipelines.errors import RequestError
from pipelines.events import Note, OnEvent
from pipelines.models.components import Components
from pipelines.pictures.foreign_metadata import not_taken
from pipelines.pictures.metadata import Made, read_foreign, read_made, with_its_files
from pipelines.request.axes import Axis
from pipelines.request.request import Request
from studio.settings import Machine, Picking
from studio.work import runner
from studio.work.attention import words_looked_up, write_overlays, write_sheet
from studio.work.compare import ALL, draw
from studio.work.progress import Progress


def repeat(
    source: Path,
    wishes: dict[str, Any],
    axes: Sequence[Axis],
    base: str | None,
    output: Path,
    machine: Machine,
    picking: Picking = ALL,
) -> list[Path]:
    """Generate a picture again from its own settings, with the fields of `wishes` instead of its own.

    With no wishes the picture is the same, bit for bit on the same machine; of a picture of AUTOMATIC1111, InvokeAI or
    ComfyUI prompts, seed, steps, sampler, size and scale are taken. Settings of the machine that were given
    win over the picture's. With axes, it is compared along them.

    Raises:
        RequestError: if a base or concept of the picture's own has changed since, or a wish is out of range.
    """
    if (told := read_foreign(source)) is not None:
        # Another program's picture tells neither weights nor every setting: it is asked for anew.
        if told.left:
            Progress("from")(Note(not_taken(source.name, told.left)))
        request = Request.read(_replaced(told.fields, wishes))
        return draw(request, axes, base or "pocket", output, machine, picking=picking)
    made, machine = _made(source, machine)
    _require_unchanged(made, source, base, "concepts" in wishes, machine)
    if not wishes and not axes and picking.best_of == 1:
        return runner.write_pictures(made.request, base or made.base, output, machine, made.index)
    if "inpaint" in wishes:
        wishes = wishes | {"inpaint": {"digests": (), **wishes["inpaint"]}}
    if "upscaler" in wishes.get("enlarge", {}):
        wishes = wishes | {"enlarge": {"digests": (), **wishes["enlarge"]}}
    stored = made.request.model_dump() | {"seed": made.request.seed + made.index, "count": 1}
    request = Request.read(_replaced(stored, wishes))
    return draw(request, axes, base or made.base, output, machine, picking=picking)


def attention(source: Path, output: Path | None, machine: Machine) -> list[Path]:
    """Draw a picture again and write where each word of its prompt looked; return the sheet and the maps.

    Args:
        source: the picture.
        output: of the sheet; beside the picture by default. The maps have its name with the ending .npz.
        machine: settings of the machine.

    Raises:
        RequestError: as `repeat`, or as `words_looked_up`.
    """
    made, machine = _made(source, machine)
    _require_unchanged(made, source, None, False, machine)
    components, progress = runner.open_base(made.base, machine), Progress("attention")
    drawn, maps = words_looked_up(made, source.name, components, progress, lambda: False)
    path = output or source.with_name(f"{source.stem}.attention.png")
    return write_sheet(made.request.prompt, drawn, maps, path)


def overlays(
    source: Path,
    components: Components,
    folder: Path,
    machine: Machine,
    on_event: OnEvent,
    should_stop: Callable[[], bool],
) -> tuple[dict[str, float], list[Path]]:
    """Draw a picture again and write it with the map of each word over it, and the maps as numbers.

    Args:
        source: the picture.
        components: its base.
        folder: to write to.
        machine: settings of the machine.
        on_event: told each step.
        should_stop: asked before each step.

    Returns:
        The words in order, each with its largest share of the attention, and the files.

    Raises:
        RequestError: as `repeat`, or as `words_looked_up`.
        Cancelled: if it should stop.
    """
    made, machine = _made(source, machine)
    _require_unchanged(made, source, None, False, machine, components)
    drawn, maps = words_looked_up(made, source.name, components, on_event, should_stop)
    return {word: float(one.max()) for word, one in maps.items()}, write_overlays(drawn, maps, folder)


def _made(source: Path, machine: Machine) -> tuple[Made, Machine]:
    """Return what a picture says of itself, and the settings of the machine, the picture's own where none are given."""
    made = with_its_files(read_made(source), source)
    own = {"attention": made.attention, "dtype": made.dtype, "quantise": made.quantise}
    return made, machine.model_copy(update={k: v for k, v in own.items() if k not in machine.model_fields_set})


def _require_unchanged(
    made: Made,
    source: Path,
    base: str | None,
    other_concepts: bool,
    machine: Machine,
    components: Components | None = None,
) -> None:
    """Refuse to repeat a picture with a base or concepts that are gone or have changed, unless others were given."""
    if base is None:
        if components is None and not (made.base == "pocket" or Path(made.base).exists() or made.base.count("/") == 1):
            raise RequestError(
                f"{source.name} was made with the base {made.base} ({made.fingerprint}), which is not in this folder.",
                "Give its folder or file with --base.",
            )
        if (now := (components or runner.open_base(made.base, machine)).fingerprint()) != made.fingerprint:
            raise RequestError(
                f"{source.name} was made with other weights of {made.base} ({made.fingerprint}, now {now}).",
                f"It cannot be repeated exactly; give --base {made.base} to use them nonetheless.",
            )
    for use, digest in () if other_concepts else zip(made.request.concepts, made.digests, strict=True):
        if not Path(use.source).is_file():
            raise RequestError(
                f"The concept {use.source} that {source.name} was made with is neither here nor beside the picture.",
                "Give its file with --concept.",
            )
        if digest and Concept.load(Path(use.source)).digest() != digest:
            raise RequestError(
                f"The concept {use.source} has changed since {source.name} was made.",
                f"It cannot be repeated exactly; give --concept {use.source} to use it nonetheless.",
            )


def _replaced(fields: dict[str, Any], wishes: dict[str, Any]) -> dict[str, Any]:
    """Return the fields with those of `wishes` instead; groups of settings are replaced field by field."""
    return fields | {
        name: _replaced(fields[name], wish) if isinstance(wish, dict) and isinstance(fields.get(name), dict) else wish
        for name, wish in wishes.items()
    }

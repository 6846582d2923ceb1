"""The command line: flags and commands; the work is done elsewhere.

Flags of training are derived from its configurations, those of `generate` from `Request`, which checks them.
Nothing here imports torch, so `studio --help` answers at once.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, CycloptsError, Parameter
from pydantic import ValidationError

from pipelines.console import print_anything
from pipelines.errors import RequestError, StudioError
from pipelines.exhaustion import hardship
from pipelines.pictures.metadata import own_version, read_foreign, read_made
from pipelines.request.axes import axis_of
from pipelines.request.box_files import Form
from pipelines.request.request import ConceptUse, Request, problems
from pipelines.request.texts import readable
from studio.commands.flags import GROUPS, MACHINE, Asked, given
from studio.commands.layout import Placing, drawn, placed
from studio.commands.layout import layout as boxes_as_lines
from studio.commands.layout_llm import Planning
from studio.commands.score.flags import BENCHMARKS, Benchmarks
from studio.library.concepts import FOLDER, meant
from studio.library.names import concept_file, named_use, ready
from studio.settings import DrawingMachine, Machine, Picking

app = App(
    name="studio",
    help="Learn objects, styles and relations from a few pictures, and generate with them.",
    version=own_version,
    help_format="plaintext",
    result_action="return_value",
    suppress_keyboard_interrupt=False,
)
app.command("studio.commands.train:app", name="train", help="Learn a concept from a folder of pictures.")
app.command("studio.commands.incontext:ask", name="incontext", help="Change a picture as example pairs show.")
app.command("studio.commands.caption:caption", name="caption", help="Write captions beside the pictures of a folder.")
app.command("studio.commands.mask:mask", name="mask", help="Make a mask of what is pointed at in a picture.")
app.command("studio.commands.replace:replace", name="replace", help="Replace a thing in a picture by another.")
app.command("studio.commands.choose:choose", name="choose", help="Measure the steps of a training and keep the best.")
app.command("studio.commands.concepts:app", name="concepts", help="List, check, import and export concepts.")
app.command("studio.commands.bases:app", name="bases", help="List base models, and get them.")
app.command("studio.commands.examples:examples", name="examples", help="Print or copy the example pictures.")
app.command("studio.serve:serve", name="serve", help="Open the studio in the browser, with a REST interface beside it.")

OnThisMachine = Annotated[Machine, Parameter(name="*", group=MACHINE)]
WhoPlans = Annotated[Planning, Parameter(name="*")]


@app.command
def generate(
    prompt: str | None = None,
    *,
    asked: Annotated[Asked, Parameter(name="*")] = Asked(),  # noqa: B008
    base: str | None = None,
    output: Path = Path("outputs"),
    source: Annotated[Path | None, Parameter(name="--from")] = None,
    placing: Annotated[Placing, Parameter(name="*", group=GROUPS["grounding"])] = Placing(),  # noqa: B008
    planning: WhoPlans = Planning(),  # noqa: B008
    compare: Annotated[tuple[str, ...], Parameter(negative="")] = (),
    picking: Annotated[Picking, Parameter(name="*", group=GROUPS[""])] = Picking(),  # noqa: B008
    machine: Annotated[DrawingMachine, Parameter(name="*", group=MACHINE)] = DrawingMachine(),  # noqa: B008
) -> None:
    """Generate pictures.

    Parameters
    ----------
    prompt
        What to show; `(word:1.3)` weighs a word, any length is used whole.
    base
        pocket (the default), a diffusers folder, a .safetensors checkpoint, or a hub id.
    output
        Folder for the pictures.
    source
        A picture made here: repeat it exactly, or with what else is given instead of its own.
    compare
        A setting and its values, one picture each with the same seed, and a sheet of all: guidance.scale=1,2,4. Given
        twice, the second runs down the sheet. Any field of a request, with dots: steps, scheduler, seed,
        concepts.NAME.strength, grounding.beta, ... words=fox,cat,dog puts the others in the place of the first in the
        prompts. Values that hold commas have | between them: "prompt=a fox, asleep|a cat".
    """
    axes = [axis_of(text) for text in compare]
    wishes = placed(given(asked) | ({} if prompt is None else {"prompt": prompt}), placing, planning)
    if source is not None:
        if read_foreign(source) is None:
            read_made(source)  # whatever is wrong with it is said before torch is loaded
        from studio.work.reproduce import repeat

        paths = repeat(source, wishes, axes, base, output, machine, picking)
    elif prompt is None:
        raise RequestError("There is neither a prompt nor --from PICTURE.", "For example: studio generate 'a fox'")
    else:
        request = ready(Request.read(wishes), base)
        if near := meant([prompt], [use.source for use in request.concepts], FOLDER):
            sys.stderr.write(f"studio: {near}\n")
        from studio.work.compare import draw

        paths = draw(request, axes, base or "pocket", output, machine, picking=picking)
    for path in [*paths[1:], paths[0]] if axes else paths:
        print(path)
        if placing.draw_boxes and not (axes and path == paths[0]):
            print(drawn(path))


@app.command
def layout(
    sentence: str | None = None,
    *,
    source: str | None = None,
    output: Path | None = None,
    form: Form = "bbox",
    size: tuple[int, int] = (512, 512),
    planning: WhoPlans = Planning(),  # noqa: B008
) -> None:
    """Plan where the things of a sentence stand, as boxes for --box; or turn a file of boxes into another form.

    Parameters
    ----------
    sentence
        For example "two foxes to the left of a house".
    source
        A file of boxes instead: .bbox, COCO or pixels .json (FILE.json:PICTURE.png for one of several), YOLO .txt.
    output
        Write the boxes here instead of printing them.
    form
        Of that file: bbox (JSON lines of fractions), coco, yolo (with classes.txt beside it) or pixels.
    size
        Width and height of the picture in pixels, for forms that need them.
    """
    for line in boxes_as_lines(sentence, source, output, form, size, planning):
        print(line)


@app.command
def export(
    *concepts: str,
    output: Path,
    base: str = "pocket",
    half: Annotated[bool, Parameter(negative="")] = False,
    machine: OnThisMachine = Machine(),  # noqa: B008
) -> None:
    """Write a base with concepts in it as a whole model folder, which any diffusers program loads.

    Parameters
    ----------
    concepts
        Concepts by word, name in outputs/concepts or file, each with a strength if wanted: wolf:0.8.
    output
        The new folder.
    base
        The base model.
    half
        Store weights in float16.
    """
    uses = [ConceptUse.model_validate(named_use(text)) for text in concepts]
    from studio.work import runner

    print(runner.export(uses, output, base, half, machine))


@app.command
def attention(
    picture: Path,
    *,
    output: Path | None = None,
    machine: Annotated[DrawingMachine, Parameter(name="*", group=MACHINE)] = DrawingMachine(),  # noqa: B008
) -> None:
    """Show where each word of the prompt looked in a picture made here: it is drawn again with maps over it.

    Parameters
    ----------
    picture
        A picture made here; it says how.
    output
        Write the sheet here instead of beside the picture; the maps as numbers have its name and end in .npz.
    """
    from studio.work import reproduce

    for path in reproduce.attention(picture, output, machine):
        print(path)


@app.command
def merge(
    *concepts: str,
    output: Path = Path("outputs/merged"),
    base: str = "pocket",
    machine: OnThisMachine = Machine(),  # noqa: B008
) -> None:
    """Make concepts of Custom Diffusion fit one base together; use the new files together.

    Parameters
    ----------
    concepts
        Two or more concepts by word, name in outputs/concepts or file.
    output
        Folder for the new ones.
    base
        The base model they belong to.
    """
    files = tuple(concept_file(name) for name in concepts)
    from studio.work import runner

    for path in runner.merge(files, output, base, machine):
        print(path)


@app.command
def identifiers(
    class_word: str = "thing",
    *,
    count: int = 8,
    base: str = "pocket",
    machine: OnThisMachine = Machine(),  # noqa: B008
) -> None:
    """List rare words of one token that mean little to a base, to bind a subject to.

    Parameters
    ----------
    class_word
        The kind of thing they are to stand before.
    count
        How many.
    base
        The base model.
    """
    from studio.work import runner

    for line in runner.identifiers(class_word, count, base, machine):
        print(line)


@app.command
def score(
    concept: str | None = None,
    *,
    thing: str | None = None,
    real: Path | None = None,
    all_held_out: bool = False,
    all_ways: bool = False,
    way: Annotated[tuple[str, ...], Parameter(negative="")] = (),
    only: Annotated[tuple[str, ...], Parameter(negative="")] = (),
    form: Annotated[Literal["table", "json"], Parameter(name="--format")] = "table",
    asked: Annotated[Benchmarks, Parameter(name="*")] = Benchmarks(),  # noqa: B008
    base: str = "pocket",
    machine: OnThisMachine = Machine(),  # noqa: B008
) -> None:
    """Measure a concept against the class word: likeness to real pictures, alignment with the prompt.

    Parameters
    ----------
    concept
        Its word, its name in outputs/concepts, or its file.
    thing
        The held-out sticker it shows, for example wolf; real pictures are composed.
    real
        A folder of real pictures of the thing that it was not trained on.
    all_held_out
        Teach every held-out sticker from four pictures, score each and print the table; takes minutes each.
    all_ways
        Teach held-out stickers in every way there is, or those of --way, and print the table that compares them, with
        two concepts in one picture; takes most of an hour for all.
    way
        textual-inversion, pivotal, lora, full or custom-diffusion; with --all-ways also pivotal-together and
        custom-diffusion-together, and several.
    only
        With --all-held-out, --all-ways or --concepts: these stickers alone, with --all-held-out also unicorn, flamingo,
        guitar, teapot or helicopter, which other hands drew; with --relations: these relations; with
        --incontext: these tasks; with --sliders: these of size, colour and count.
    form
        table or json.
    base
        The base model the concept belongs to.
    """
    file = None if concept is None else concept_file(concept)
    from studio.work import runner

    for name, (module, carried_out_by) in BENCHMARKS.items():
        if getattr(asked, name):
            getattr(import_module(module), carried_out_by)(asked, only, base, form, machine, print)
            return
    if all_ways:
        runner.score_ways(way, only, form, machine, print)
    elif all_held_out:
        runner.score_held_out(way, only, form, machine, print)
    else:
        print(runner.score(file, thing, real, base, form, machine))


@app.command
def doctor(machine: OnThisMachine = Machine()) -> None:  # noqa: B008
    """Show what is installed, what the machine offers, and whether pocket loads."""
    from studio.work import runner

    for line in runner.doctor(machine):
        print(line)


def _of_a_path(error: Exception) -> StudioError | None:
    """Return an error of the system about a path (too long, or closed to us); None for other errors."""
    if not isinstance(error, OSError) or error.filename is None:
        return None
    return StudioError(f"{error.filename!s:.200} cannot be used: {error.strerror}.", "Check the path and its rights.")


def _help_of(words: list[str]) -> str:
    """Return the call of the help of the command that was meant."""
    return " ".join(["studio", *app.parse_commands(words)[0], "--help"])


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; errors meant for people are one sentence and exit code 2."""
    print_anything()
    words = sys.argv[1:] if arguments is None else arguments
    try:
        if words[:1] == ["train"]:
            from studio.commands.train import translate

            words = translate(words)
        app(words, exit_on_error=False, print_error=False)
    except StudioError as error:
        print(readable(f"studio: {error}"), file=sys.stderr)
        return 2
    except CycloptsError as error:
        cause = error.__cause__ or error.__context__
        said = problems(cause) if isinstance(cause, ValidationError) else str(error).replace("\n", " ")
        print(readable(f"studio: {said} {_help_of(words)} lists what there is."), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("studio: stopped.", file=sys.stderr)
        return 130
    except Exception as error:
        if (known := hardship(error) or _of_a_path(error)) is None:
            raise
        print(f"studio: {known}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

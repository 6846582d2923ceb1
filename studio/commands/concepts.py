"""`studio concepts`: the library on the command line. Importable without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from pipelines.concepts.card import Kind
from pipelines.errors import ConceptError, StudioError
from studio.library import concepts

app = App(name="concepts", help="List, check, import and export concepts.", help_format="plaintext")

Library = Annotated[Path, Parameter(name="--library")]


@app.command(name="list")
def list_(*, folder: Library = concepts.FOLDER) -> None:
    """List the concepts of a folder.

    Parameters
    ----------
    folder
        Where the concepts are.
    """
    for line in concepts.listed(folder):
        print(line)


@app.command
def show(name: str, *, folder: Library = concepts.FOLDER) -> None:
    """Show what a concept says of itself.

    Parameters
    ----------
    name
        Its file, the file's name, or the word.
    folder
        Where the concepts are.
    """
    for line in concepts.shown(concepts.found(name, folder)):
        print(line)


@app.command
def verify(*names: str, folder: Library = concepts.FOLDER) -> None:
    """Check that concepts are as they were written; without names, all.

    Parameters
    ----------
    names
        Files, names of files, or words.
    folder
        Where the concepts are.
    """
    paths = [concepts.found(name, folder) for name in names] or [entry.path for entry in concepts.scan(folder)]
    damaged: list[str] = []
    for path in paths:
        try:
            print(concepts.verify(path))
        except StudioError as error:
            damaged.append(path.name)
            print(f"{path}: damaged: {error}")
    if damaged:
        raise ConceptError(f"{len(damaged)} of {len(paths)} are damaged: {', '.join(damaged)}.", "Get them again.")


@app.command(name="import")
def import_(
    source: Path,
    *,
    token: str | None = None,
    kind: Kind | None = None,
    base: Annotated[tuple[str, ...], Parameter(negative="")] = (),
    folder: Library = concepts.FOLDER,
) -> None:
    """Take in a file of another program (.safetensors, .png, or .pt and .bin, which are not run), or a folder.

    Parameters
    ----------
    source
        An embedding or a LoRA: a file, or a folder of PEFT or of a training script of diffusers.
    token
        The word to use it by; its own by default.
    kind
        What it is, where the file does not say so: a relation gets a note when it is used without things on both sides.
    base
        The base that whole weights (Custom Diffusion of diffusers) and IA3 belong to, of which they become differences:
        pocket, a folder, a .safetensors file or a hub id; of several the first that fits.
    folder
        Where the concepts are.
    """
    from studio.library import import_export

    print(import_export.import_concept(source, token, folder, kind, base))


@app.command
def export(
    name: str,
    *,
    output: Path,
    dialect: Annotated[Literal["a1111", "comfyui", "diffusers", "peft"], Parameter(name="--for")] = "a1111",
    half: Annotated[bool, Parameter(negative="")] = False,
    base: str | None = None,
    folder: Library = concepts.FOLDER,
) -> None:
    """Write a concept for other programs.

    Parameters
    ----------
    name
        Its file, the file's name, or the word.
    output
        Folder for the files.
    dialect
        a1111, also for Forge, ComfyUI, InvokeAI and kohya's scripts; comfyui, in its own names for
        transformers; diffusers; or peft, a folder for each LoRA.
    half
        Store numbers in float16.
    base
        The base it was learned on: pocket, a folder, a .safetensors file or a hub id. Needed for a DoRA in a1111, whose
        changes are written whole there.
    folder
        Where the concepts are.
    """
    from studio.library import import_export

    for path in import_export.export_concept(concepts.found(name, folder), output, dialect, half, base):
        print(path)


@app.command
def rename(name: str, token: str, *, folder: Library = concepts.FOLDER) -> None:
    """Give a concept another word, and its file that name.

    Parameters
    ----------
    name
        Its file, the file's name, or the word.
    token
        The new word.
    folder
        Where the concepts are.
    """
    from studio.library import import_export

    print(import_export.rename_concept(concepts.found(name, folder), token))


@app.command
def delete(
    name: str, *, yes: Annotated[bool, Parameter(negative="")] = False, folder: Library = concepts.FOLDER
) -> None:
    """Delete a concept for good, with its log of losses.

    Parameters
    ----------
    name
        Its file, the file's name, or the word.
    yes
        Really.
    folder
        Where the concepts are.
    """
    path = concepts.found(name, folder)
    if not yes:
        raise ConceptError(f"{path} would be deleted for good.", "Say --yes to do it.")
    for gone in concepts.delete(path):
        print(gone)

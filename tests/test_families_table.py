"""The README's table of base models is what small ones of each family do; `python -m tests.test_families_table`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from pipelines.concepts.card import ConceptCard
from pipelines.concepts.concept import Concept
from pipelines.concepts.formats.kohya import named
from pipelines.concepts.formats.original_tensors import in_original_names
from pipelines.concepts.token_embeddings import single_rows
from pipelines.concepts.writers import export_as
from pipelines.conditions.analogist import Analogist
from pipelines.conditions.inpaint import Inpainting
from pipelines.errors import StudioError
from pipelines.generation import generate
from pipelines.models.families.known import KNOWN
from pipelines.models.loading import load
from pipelines.pictures.grids import Grid
from pipelines.request.request import Request
from tests import tiny, tiny_flows
from trainers.methods import methods

README = Path(__file__).parent.parent / "README.md"
BASES = {
    "pocket": load,
    "sd1": tiny.sd,
    "sd2": lambda: tiny.frozen(tiny.from_pipeline(tiny.sd_pipeline(dim=1024), "tiny-2")),
    "sdxl": tiny.sdxl,
    **{family: lambda family=family: tiny_flows.base(family) for family in tiny_flows.PIPELINES},
}
COLUMNS = ("draw, paint", "words, relations", "LoRA, full", "boxes, examples, P+", "LoRA elsewhere", "words elsewhere")


def drawn(base, folder):
    picture, mask = Image.new("RGB", (64, 64)), Image.new("L", (64, 64))
    mask.paste(255, (16, 16, 48, 48))
    request = Request(prompt="a fox", width=64, height=64, steps=2)
    assert torch.isfinite(generate(base, request).latents).all()
    assert generate(base, request, conditions=[Inpainting(picture, mask)]).pictures


def prepared(base, name, **settings):
    method = methods()[name]
    with method.prepare(base, method.Settings(**settings), torch.Generator().manual_seed(0)) as trainable:
        assert trainable.parameters
        return method.export(trainable)


def words(base, folder):
    prepared(base, "textual-inversion", token="<x>", init="fox")
    prepared(base, "reversion", token="<x>", init="fox", left="fox", right="cat", steer=0.0)


def weights(base, folder):
    for form in ("lora", "full"):
        prepared(base, "dreambooth", token="<x>", class_word="fox", pivotal=True, form=form)


def reaching_into_a_unet(base, folder):
    prepared(base, "p-plus", token="<x>", init="fox")
    prepared(base, "custom-diffusion", token="<x>", class_word="fox")
    with Analogist(Grid()).attach(base, 1):
        pass


def lora_elsewhere(base, folder):
    concept = prepared(base, "dreambooth", token="cow", class_word="fox")
    for dialect in ("comfyui", "diffusers"):
        assert export_as(concept, folder / dialect, dialect)
    assert named(in_original_names(concept.changes, base.family.name), base.family.name == "sdxl")
    if KNOWN[base.family.name].architecture.startswith("promptstudio"):
        raise StudioError("nobody else has this base")


def words_elsewhere(base, folder):
    card = ConceptCard(token="<x>", family=base.family.name, init="fox")
    export_as(Concept(card, single_rows(base, "fox")), folder / "word", "comfyui")
    if KNOWN[base.family.name].architecture.startswith("promptstudio"):
        raise StudioError("nobody else has this base")


DONE = (drawn, words, weights, reaching_into_a_unet, lora_elsewhere, words_elsewhere)


def row(family, folder):
    """A line of the table: what can be done, and what is refused in words."""
    base, cells = BASES[family](), []
    for one in DONE:
        try:
            one(base, folder)
            cells.append("yes")
        except StudioError:
            cells.append("")
    return f"| {KNOWN[family].title} | {' | '.join(cells)} |"


HEAD = f"| base | {' | '.join(COLUMNS)} |\n|{'---|' * (len(COLUMNS) + 1)}"


def test_every_family_has_its_line():
    assert set(BASES) == set(KNOWN) and HEAD in README.read_text(encoding="utf-8")


@pytest.mark.parametrize("family", BASES)
def test_the_readme_says_what_works_on_which_family(family, tmp_path):
    assert row(family, tmp_path) in README.read_text(encoding="utf-8").splitlines()


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as place:
        print(HEAD)
        for name in BASES:
            print(row(name, Path(place) / name))

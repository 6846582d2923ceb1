"""`studio concepts`: the library on the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from pipelines.concepts.card import ConceptCard, read_card
from pipelines.concepts.concept import Concept
from studio.cli import main
from studio.library.concepts import scan
from tests.torture.fuzz import fuzz
from tests.waiting import LIMIT


@pytest.fixture
def folder(tmp_path):
    for name in ("cat", "dog"):
        card = ConceptCard(token=f"<{name}>", family="sd1", vectors=2, base="tiny", init=name)
        Concept(card, (torch.randn(2, 768),)).save(tmp_path / "library" / f"{name}.safetensors")
    (tmp_path / "library" / "cat.losses.jsonl").write_text("{}\n")
    return tmp_path / "library"


def run(folder, *arguments):
    return main(["concepts", *map(str, arguments), "--library", str(folder)])


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_they_are_listed_and_shown_also_damaged_ones(folder, capsys):
    (folder / "bad.safetensors").write_bytes(b"12345678901")
    assert run(folder, "list") == 0
    bad, cat, dog = capsys.readouterr().out.splitlines()
    assert "damaged" in bad and "<cat>" in cat and "Stable Diffusion 1.x" in dog
    for name in ("cat", "<cat>", folder / "cat.safetensors"):
        assert run(folder, "show", name) == 0
        assert "token             <cat>" in capsys.readouterr().out
    assert run(folder, "show", "bird") == 2
    assert "There are: bad, cat, dog" in capsys.readouterr().err


def test_a_thousand_are_listed_in_a_second_without_torch(folder, tmp_path):
    content = (folder / "cat.safetensors").read_bytes()
    many = tmp_path / "many"
    many.mkdir()
    for number in range(1000):
        (many / f"{number}.safetensors").write_bytes(content)
    began = time.process_time()
    assert len(list(scan(many))) == 1000
    assert time.process_time() - began < 1
    code = "import sys, studio.commands.concepts, studio.library.concepts; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=LIMIT)
    assert done.stdout.strip() == "False"


def test_a_changed_number_is_noticed(folder, capsys):
    assert run(folder, "verify") == 0
    assert capsys.readouterr().out.count(": whole") == 2
    path = folder / "cat.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert run(folder, "verify") == 2
    told = capsys.readouterr()
    assert "cat.safetensors: damaged" in told.out and "1 of 2 are damaged" in told.err
    assert run(folder, "verify", "dog") == 0


@pytest.mark.parametrize("dialect", ["a1111", "diffusers"])
def test_export_and_import_give_the_same_word(folder, tmp_path, dialect):
    assert run(folder, "export", "cat", "--for", dialect, "--output", tmp_path / "out") == 0
    exported = tmp_path / "out" / "cat.safetensors"
    assert len(load_file(exported)) == 1
    assert run(tmp_path / "other", "import", exported) == 0
    back, cat = Concept.load(tmp_path / "other" / "cat.safetensors"), Concept.load(folder / "cat.safetensors")
    assert back.digest() == cat.digest() and back.card.init == "cat"


def test_pickles_are_imported_under_any_word_and_never_over_another(folder, tmp_path, capsys):
    rows = torch.randn(768)
    torch.save({"<R>": rows}, tmp_path / "learned_embeds.bin")
    assert run(folder, "import", tmp_path / "learned_embeds.bin") == 0
    assert torch.equal(Concept.load(folder / "R.safetensors").rows[0], rows[None])
    assert run(folder, "import", tmp_path / "learned_embeds.bin", "--token", "<carved-by>", "--kind", "relation") == 0
    assert read_card(folder / "carved-by.safetensors").kind == "relation"
    assert read_card(folder / "carved-by.safetensors").token == "<carved-by>"
    before = (folder / "cat.safetensors").read_bytes()
    for token in ("<cat>", "", "x" * 101):
        assert run(folder, "import", tmp_path / "learned_embeds.bin", "--token", token) == 2
    assert (folder / "cat.safetensors").read_bytes() == before
    (tmp_path / "evil.pt").write_bytes(b"PK not really")
    assert run(folder, "import", tmp_path / "evil.pt") == 2 and run(folder, "import", tmp_path / "none.pt") == 2
    assert capsys.readouterr().err.count("studio: ") == 5
    assert len(names(folder)) == 5


def test_an_old_pickle_of_one_stream_is_refused_and_not_run(folder, tmp_path, capsys):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "trace"),)

    torch.save({"<x>": Evil()}, tmp_path / "x.bin", _use_new_zipfile_serialization=False)
    assert run(folder, "import", tmp_path / "x.bin") == 2
    assert "is a pickle, which can run code" in capsys.readouterr().err and not (tmp_path / "trace").exists()


def test_a_concept_is_renamed_with_its_log(folder, capsys):
    rows = Concept.load(folder / "cat.safetensors").rows[0]
    assert run(folder, "rename", "cat", "<lion>") == 0
    assert names(folder) == ["dog.safetensors", "lion.losses.jsonl", "lion.safetensors"]
    lion = Concept.load(folder / "lion.safetensors")
    assert lion.token == "<lion>" and torch.equal(lion.rows[0], rows)
    assert run(folder, "rename", "lion", "<dog>") == 2 and "there already" in capsys.readouterr().err
    assert "lion.safetensors" in names(folder)


def test_the_picture_and_the_note_of_other_programs_go_with_a_concept(folder, tmp_path):
    Image.new("RGB", (8, 8), "red").save(folder / "cat.preview.png")
    out, back = tmp_path / "out", tmp_path / "back"
    assert run(folder, "export", "cat", "--output", out) == 0
    assert names(out) == ["cat.json", "cat.preview.png", "cat.safetensors"]
    note = json.loads((out / "cat.json").read_text())
    assert (note["activation text"], note["sd version"], note["preferred weight"]) == ("cat", "SD1", 1.0)
    assert note["description"] == "object, learned from cat by textual-inversion" and note["notes"] == "trained on tiny"
    assert run(back, "import", out / "cat.safetensors") == 0
    assert (
        names(back) == ["cat.preview.png", "cat.safetensors"] and read_card(back / "cat.safetensors").token == "<cat>"
    )
    (back / "cat.json").write_text("{}")
    assert run(back, "rename", "cat", "<lion>") == 0
    assert names(back) == ["lion.json", "lion.preview.png", "lion.safetensors"]
    assert run(back, "delete", "lion", "--yes") == 0 and names(back) == []


@pytest.mark.parametrize(
    ("note", "token"),
    [
        ('{"activation text": "sks fox, best quality"}', "sks fox"),
        ('{"activation text": ""}', "mine"),
        ('{"activation text": 3}', "mine"),
        ("[" * 100_000, "mine"),
        ("[1]", "mine"),
        ("no json", "mine"),
        (" " * (1 << 20) + '{"activation text": "long"}', "mine"),
    ],
)
def test_a_lora_that_names_no_word_has_the_one_of_the_note_beside_it(tmp_path, note, token):
    layer = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_q"
    pair = {f"{layer}.lora_down.weight": torch.ones(2, 8), f"{layer}.lora_up.weight": torch.ones(8, 2)}
    save_file(pair, tmp_path / "mine.safetensors")
    (tmp_path / "mine.json").write_text(note)
    assert run(tmp_path / "library", "import", tmp_path / "mine.safetensors") == 0
    (made,) = (tmp_path / "library").iterdir()
    assert read_card(made).token == token


def test_nothing_is_deleted_without_yes(folder, capsys):
    assert run(folder, "delete", "cat") == 2 and "--yes" in capsys.readouterr().err
    assert len(names(folder)) == 3
    assert run(folder, "delete", "cat", "--yes") == 0
    assert names(folder) == ["dog.safetensors"]
    (folder / "bad.safetensors").write_bytes(b"no concept at all")
    assert run(folder, "delete", "bad", "--yes") == 2 and "bad.safetensors" in names(folder)


def test_five_hundred_mutated_files_are_read_or_one_sentence(tmp_path):
    """Ten thousand in `make torture`."""
    counts = fuzz(500, 1, tmp_path)
    assert sum(counts.values()) == 500 and counts["refused"] > 100 and counts["read"] > 10

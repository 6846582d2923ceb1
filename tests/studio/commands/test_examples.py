"""`studio examples` prints where the examples lie, or copies them."""

from __future__ import annotations

from pathlib import Path

from studio.cli import main

EXAMPLES = Path(__file__).parents[3] / "studio" / "examples"


def test_the_folder_is_printed(capsys):
    assert main(["examples"]) == 0
    assert Path(capsys.readouterr().out.strip()).samefile(EXAMPLES)


def test_a_copy_is_whole_and_replaces_nothing(tmp_path, capsys):
    mine = tmp_path / "studio" / "examples"
    (mine / "wolf").mkdir(parents=True)
    (mine / "wolf" / "1.png").write_bytes(b"mine")
    assert main(["examples", str(mine)]) == 0
    assert capsys.readouterr().out.strip() == str(mine)
    copied = {path.relative_to(mine): path.read_bytes() for path in mine.rglob("*") if path.is_file()}
    wanted = {path.relative_to(EXAMPLES): path.read_bytes() for path in EXAMPLES.rglob("*") if path.is_file()}
    assert copied == wanted | {Path("wolf/1.png"): b"mine"}

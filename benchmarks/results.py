"""Every figure of the docs: run the command that prints it, keep what came out, and write the pages that show it.

    python -m benchmarks.results              # run all (hours on two cores)
    python -m benchmarks.results boxes masks  # run some
    python -m benchmarks.results --write      # run none; write the pages anew

`docs/results.json` holds for each measurement its command, its figures as the command printed them, date, machine,
commit, and the weights of `pocket` it is of. `docs/results/measured.md` and the tables of README and docs between the
marks `<!-- results: NAME -->` and `<!-- end -->` are written from it; `tests/test_results.py` fails where they differ.
A table that was measured on other weights than those that are shipped says so by itself.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipelines.concepts.compatibility import base_files
from pipelines.files import whole_file
from pipelines.models import POCKET
from trainers.pretrain.card import GOALS, device_name

ROOT = Path(__file__).parents[1]
RESULTS, PAGE = ROOT / "docs" / "results.json", ROOT / "docs" / "results" / "measured.md"
LIMIT = 6 * 3600.0
"""Seconds a measurement may take."""
HANDS = ("unicorn", "flamingo", "guitar", "teapot", "helicopter")

Figures = Mapping[str, Any]


def _number(value: Any, digits: int = 3) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _half(row: Figures) -> str:
    """Drawn likeness with half its interval."""
    return f"{row['drawn']:.3f} ± {row['drawn_half']:.3f}" if row.get("drawn_half") else _number(row.get("drawn"))


def _share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    head = list(head)
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *map(list, rows))]


def pocket_table(figures: Figures) -> list[str]:
    """Figures of the model card beside their floor, ceiling and goals."""
    floors = {
        name: figures["drawn_floor"] for name in ("reconstruction_drawn", "one_object_drawn", "two_objects_drawn")
    }
    tops: dict[str, float] = dict.fromkeys(("one_object_drawn", "two_objects_drawn"), figures["reconstruction_drawn"])
    rows: list[list[str]] = []
    for key, (meaning, least, goal) in GOALS.items():
        half = figures.get(f"{key}_half")
        shown = f"{figures[key]:.3f} ± {half:.3f}" if half else _number(figures[key], 2 if key.endswith("db") else 3)
        rows.append([meaning, f"**{shown}**", _number(floors.get(key)), _number(tops.get(key)), f"{least}", f"{goal}"])
    return _table(("figure", "measured", "floor", "ceiling", "goal on two cores", "with a GPU"), rows)


def thing_table(figures: Figures) -> list[str]:
    """One line for each thing that was taught, and their mean."""
    head = (
        "thing",
        "drawn likeness",
        "class word",
        "floor",
        "ceiling",
        "judge's likeness",
        "named right",
        "class kept",
    )
    rows = [
        [
            name,
            _half(row),
            *(_number(row.get(f"drawn_{one}")) for one in ("word", "floor", "ceiling")),
            _number(row.get("likeness")),
            _share(row.get("named")),
            _share(row.get("class_kept")),
        ]
        for name, row in figures.items()
    ]
    return _table(head, rows)


def way_table(figures: Figures) -> list[str]:
    """One line for each way of learning."""
    head = (
        "way", "drawn likeness", "likeness", "alignment gained", "named right", "class kept", "both of two there",
        "seconds", "KiB",
    )  # fmt: skip
    rows = [
        [
            way,
            _half(row),
            _number(row.get("likeness")),
            _number(row.get("alignment_gain")),
            _share(row.get("named")),
            _share(row.get("class_kept")),
            _share(row.get("both")),
            _number(row.get("seconds"), 0),
            _number(row.get("kib"), 0),
        ]
        for way, row in figures.items()
    ]
    return _table(head, rows)


def plain_table(figures: Figures) -> list[str]:
    """Rows of plain figures, whatever they are."""
    names = list(dict.fromkeys(name for row in figures.values() for name, value in row.items() if _plain(value)))
    return _table(
        ("", *(name.replace("_", " ") for name in names)),
        ([key, *(_number(row.get(name)) for name in names)] for key, row in figures.items()),
    )


def _plain(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def relation_table(figures: Figures) -> list[str]:
    """Share of pictures that show a relation, one line for each relation, one column for each way."""
    ways = list(dict.fromkeys(way for row in figures.values() for way in row))
    return _table(
        ("relation", *ways),
        (
            [name, *(_share(row[way].get("holds")) if way in row else "" for way in ways)]
            for name, row in figures.items()
        ),
    )


def question_table(figures: Figures) -> list[str]:
    """One line for each task asked in pictures."""
    head = ("task", "trained", "drawn likeness of the answer", "of the query itself", "measure", "answer",
            "without an example", "wrong example", "right over wrong")  # fmt: skip
    rows: list[list[str]] = []
    for task, row in figures.items():
        if not isinstance(row, Mapping):
            continue
        ways, measure = row["ways"], row["measure"]
        gain = row["right_over_wrong"]
        rows.append(
            [
                task,
                "yes" if row["trained"] else "no",
                _number(ways["answer"].get("drawn")),
                _number(ways["copy"].get("drawn")),
                measure,
                *(_number(ways.get(way, {}).get(measure)) for way in ("answer", "no example", "wrong example")),
                f"{gain['mean']:+.3f} ± {gain['half_interval']:.3f}",
            ]
        )
    return _table(head, rows)


@dataclass(frozen=True)
class Measurement:
    """A command whose figures are shown.

    Attributes:
        title: of its section.
        command: words after `python -m`.
        table: lines of a table from the figures.
        told: what stands above the table.
        part: file of `pocket` that is measured beside its base.
    """

    title: str
    command: tuple[str, ...]
    table: Callable[[Figures], list[str]]
    told: str = ""
    part: str = ""


def _score(*words: str) -> tuple[str, ...]:
    return ("studio.cli", "score", *words, "--format", "json")


MEASUREMENTS: dict[str, Measurement] = {
    "pocket": Measurement(
        "What pocket draws",
        ("trainers.pretrain", "score"),
        pocket_table,
        "200 prompts of each kind. The floor is the nearest other sticker, the ceiling what the autoencoder "
        "leaves of a real picture.",
    ),
    "dreambooth": Measurement(
        "Held-out things by DreamBooth, low-rank, with a word of its own",
        _score("--all-held-out", "--way", "pivotal"),
        thing_table,
        "Taught from four pictures each, 24 pictures drawn.",
    ),
    "textual-inversion": Measurement(
        "Held-out things by Textual Inversion", _score("--all-held-out"), thing_table, "As above, a word alone."
    ),
    "other-hands": Measurement(
        "Things that other hands drew, by DreamBooth",
        _score("--all-held-out", "--way", "pivotal", *(word for name in HANDS for word in ("--only", name))),
        thing_table,
        "Drawings of Noto Emoji, of things in no list of pocket.",
    ),
    "ways": Measurement(
        "All ways of learning side by side",
        _score("--all-ways", *(word for name in ("wolf", "taxi", "tiger", "tangerine") for word in ("--only", name))),
        way_table,
        "Means over four things; two concepts in one picture, 40 seeds a pair.",
    ),
    "relations": Measurement(
        "Relations from ten pictures each",
        _score("--relations"),
        relation_table,
        "Share of 40 pictures of pairs that were in no exemplar that show both things standing as told.",
    ),
    "boxes": Measurement(
        "Things in boxes",
        _score("--boxes", "--pictures", "48"),
        plain_table,
        "Layouts of one to three things; the same seeds without boxes. Then two things that touch or overlap, "
        "beside real pictures that the autoencoder restored: what such a measure can reach.",
        "unet/diffusion_pytorch_model.safetensors",
    ),
    "regions": Measurement(
        "Several learned things in one picture, each in its box",
        _score("--regions", "--only", "wolf", "--only", "tiger"),
        plain_table,
        "Two animals, 12 layouts a group, the same seeds in each way. A thing in another's box, or twice, is leakage.",
        "unet/diffusion_pytorch_model.safetensors",
    ),
    "guidance": Measurement(
        "Formulas of guidance",
        ("benchmarks.guidance", "--format", "json"),
        plain_table,
        "The same 60 prompts and seeds for all, one thing or two in a relation; calls of the denoiser and CPU seconds "
        "a picture.",
    ),
    "masks": Measurement("Masks from clicks and boxes", _score("--masks", "--pictures", "20"), plain_table),
    "questions": Measurement(
        "Questions asked in pictures",
        _score("--incontext", "--pictures", "8"),
        question_table,
        "Stickers that no model was trained on.",
        "unet_inpainting/diffusion_pytorch_model.safetensors",
    ),
}


def run(name: str) -> dict[str, Any]:
    """Run a measurement and return what is kept of it.

    Raises:
        subprocess.CalledProcessError: if its command fails.
        subprocess.TimeoutExpired: after six hours.
    """
    measurement, began = MEASUREMENTS[name], time.monotonic()
    command = [sys.executable, "-m", *measurement.command]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True, timeout=LIMIT)
    commit = ["git", "rev-parse", "--short", "HEAD"]
    at = subprocess.run(commit, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60).stdout.strip()
    return {
        "command": shown(measurement),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": device_name("cpu"),
        "commit": at,
        "pocket": weights(name),
        "minutes": round((time.monotonic() - began) / 60, 1),
        "figures": json.loads(done.stdout[done.stdout.index("{") :]),
    }


def shown(measurement: Measurement) -> str:
    """The command of a measurement as a person types it."""
    words = " ".join(measurement.command)
    return words.replace("studio.cli", "studio", 1) if words.startswith("studio.cli") else f"python -m {words}"


def section(name: str, results: Mapping[str, Any]) -> list[str]:
    """The lines that show a measurement: where it comes from, and its table."""
    measurement, result = MEASUREMENTS[name], results.get(name)
    if result is None:
        return textwrap.wrap(f"Not measured yet: `{shown(measurement)}`.", 120, break_on_hyphens=False)
    source = f"`{result['command']}`, {result['date']}, {result['machine']}, {result['minutes']:g} minutes"
    source += f", commit {result['commit']}." if result["commit"] else "."
    if result["pocket"] != weights(name):
        source += " **Measured on earlier weights of `pocket`.**"
    lines = textwrap.wrap(f"{measurement.told} {source}", 120, break_long_words=False, break_on_hyphens=False)
    return [*lines, "", *measurement.table(result["figures"])]


def page(results: Mapping[str, Any]) -> str:
    """The page of all results."""
    lines = [
        "# Measured",
        "",
        "Written by `python -m benchmarks.results` from `docs/results.json`; `make results` measures everything anew.",
        "Drawn likeness: 1 is the drawing itself; its floor is the nearest other drawing, its ceiling",
        "what the autoencoder leaves of a real picture. The judge only tells what a thing is meant to be.",
        "",
    ]
    for name, measurement in MEASUREMENTS.items():
        lines += [f"## {measurement.title}", "", *section(name, results), ""]
    return "\n".join(lines)


MARKED = re.compile(r"<!-- results: (?P<name>[\w-]+) -->\n.*?<!-- end -->", re.DOTALL)


def filled(text: str, results: Mapping[str, Any]) -> str:
    """A page with the tables between its marks written anew.

    Raises:
        KeyError: if a mark names no measurement.
    """

    def block(found: re.Match[str]) -> str:
        name = found["name"]
        return "\n".join([f"<!-- results: {name} -->", *section(name, results), "<!-- end -->"])

    return MARKED.sub(block, text)


def read() -> dict[str, Any]:
    """Return all results that were kept so far."""
    return json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}


def write(results: Mapping[str, Any]) -> None:
    """Keep the results and write the pages that show them."""
    texts = {RESULTS: json.dumps(results, indent=1) + "\n", PAGE: page(results)}
    texts |= {path: filled(path.read_text(encoding="utf-8"), results) for path in marked()}
    for path, text in texts.items():
        with whole_file(path) as temporary:
            temporary.write_text(text, encoding="utf-8")


def marked() -> list[Path]:
    """The pages that show tables of results between marks."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [path for path in pages if path != PAGE and MARKED.search(path.read_text(encoding="utf-8"))]


def weights(name: str) -> str:
    """Name the weights of `pocket` that a measurement is of: its base, and the part that the base's name leaves out."""
    base, part = base_files("pocket").fingerprint, MEASUREMENTS[name].part
    if not part:
        return base
    return f"{base}-{hashlib.sha256((POCKET / part).read_bytes()).hexdigest()[:16]}"


def main(arguments: list[str] | None = None) -> None:
    """Run measurements, each kept as soon as it is done."""
    parser = argparse.ArgumentParser(description="Run the measurements of the docs and write the pages that show them.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(MEASUREMENTS)}; all by default")
    parser.add_argument("--write", action="store_true", help="run nothing, only write the pages")
    asked = parser.parse_args(arguments)
    if unknown := [name for name in asked.names if name not in MEASUREMENTS]:
        parser.error(f"{unknown[0]!r} is no measurement; there are {', '.join(MEASUREMENTS)}.")
    for name in () if asked.write else asked.names or MEASUREMENTS:
        print(f"{name}: {shown(MEASUREMENTS[name])}", flush=True)
        write({**read(), name: run(name)})
    write(read())


if __name__ == "__main__":
    main()

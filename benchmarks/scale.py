"""Lists that grow: pictures of the record, concepts of the library, jobs, from ten to ten thousand.

    python -m benchmarks.scale            # a table, a minute
    python -m benchmarks.scale --json     # the same for programs

Milliseconds that the process itself computes for a warm look, the median of several, and for the first look of a new
process; nothing is generated.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fastapi.testclient import TestClient
from PIL import Image

from pipelines.concepts.card import read_card
from studio.api.app import rest
from studio.jobs.history import PictureSearch
from studio.jobs.jobs import Jobs
from studio.library import concepts, index
from studio.web.pages.concepts import cards_of
from studio.web.panels.chips import chips_of

LOOKS = 7
PICTURES, CONCEPTS = (10, 1_000, 10_000), (10, 1_000, 5_000)


def took(look: Callable[[], Any], looks: int = LOOKS) -> float:
    """Return the median CPU time of some looks in milliseconds; other work on the machine does not count."""
    times: list[float] = []
    for _ in range(looks):
        began = time.process_time()
        look()
        times.append(1000 * (time.process_time() - began))
    return round(statistics.median(times), 1)


def of_concepts(folder: Path, count: int) -> dict[str, float]:
    """Measure a library of so many concepts, with previews."""
    jobs = Jobs(folder, warm=False)
    library(jobs.learned, count)
    index._known.clear()
    first = took(lambda: concepts.scan(jobs.learned), 1)
    with TestClient(rest(jobs)) as web:
        return {
            "first look of a process": first,
            "all of them": took(lambda: concepts.scan(jobs.learned)),
            "a search on the page": took(lambda: cards_of(jobs, "pocket")),
            "chips of Generate": took(lambda: chips_of(jobs, "pocket")),
            "REST, 100 of them": took(lambda: web.get("/api/v1/concepts?limit=100")),
            "REST, all": took(lambda: web.get("/api/v1/concepts"), 3),
        }


def library(folder: Path, count: int) -> None:
    """Put so many indexed concepts with previews into a folder; links to one file stand for as many files."""
    first, preview = folder / "00000.safetensors", folder / "00000.preview.png"
    shutil.copyfile(concepts.EXAMPLE, first)
    shutil.copyfile(concepts.EXAMPLE.with_suffix(".preview.png"), preview)
    for number in range(1, count):
        os.link(first, folder / f"{number:05}.safetensors")
        os.link(preview, folder / f"{number:05}.preview.png")
    card = read_card(first)
    stamps = index._stamps(folder)
    cards = {name: card.model_copy(update={"token": f"<c{name[:5]}>"}) for name in os.listdir(folder)}
    known = {name: index.IndexEntry(folder / name, cards[name], "", index.Stamp(*stamp)) for name, stamp in stamps}
    index._store(folder, known, ())
    index._known.clear()  # what this process knew of an emptier folder


def of_record(folder: Path, count: int) -> dict[str, float]:
    """Measure a record of so many generations with a picture each."""
    jobs = Jobs(folder, warm=False)
    first = jobs.submit_generation({"prompt": "a fox on a blue background"}).id
    names = [f"jobs/{first}/0.png"]
    jobs.places.job(first).mkdir(parents=True)
    Image.new("RGB", (64, 64)).save(jobs.folder / names[0])
    if not (jobs.ledger.claim(first, 1, 1.0) and jobs.ledger.move(first, ("running",), "done", results=names)):
        raise RuntimeError("the record took no job")
    with sqlite3.connect(jobs.ledger.path) as base:
        base.execute(
            "WITH RECURSIVE n(x) AS (SELECT 2 UNION ALL SELECT x + 1 FROM n WHERE x < ?) INSERT INTO jobs"
            " (id, kind, state, spec, created, results) SELECT 'n' || x, kind, state, spec, created, results"
            " FROM jobs, n WHERE id = ?",
            (count, first),
        )
    base.close()
    with TestClient(rest(jobs)) as web:
        return {
            "newest 60 pictures": took(lambda: jobs.history.find(PictureSearch(), 60)),
            "a word that none holds": took(lambda: jobs.history.find(PictureSearch("zebra"), 60), 3),
            "boards": took(jobs.history.boards),
            "REST, 100 jobs": took(lambda: web.get("/api/v1/generations")),
            "the queue": took(lambda: web.get("/api/v1/queue")),
        }


def measured() -> Iterator[tuple[str, int, dict[str, float]]]:
    """Return what is counted, how many there are, and the figures."""
    for what, counts, measure in (("concepts", CONCEPTS, of_concepts), ("pictures", PICTURES, of_record)):
        for count in counts:
            with tempfile.TemporaryDirectory(prefix="scale-") as place:
                yield what, count, measure(Path(place), count)


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description="How lists of concepts, pictures and jobs grow.")
    parser.add_argument("--json", action="store_true", help="for programs")
    asked = parser.parse_args()
    rows = list(measured())
    if asked.json:
        print(json.dumps([{"what": what, "count": count, "ms": figures} for what, count, figures in rows], indent=1))
        return
    for name in dict.fromkeys(what for what, _, _ in rows):
        of_it = [(count, figures) for what, count, figures in rows if what == name]
        print(f"| {name}, ms | " + " | ".join(f"{count:,}" for count, _ in of_it) + " |")
        print("|---|" + "---|" * len(of_it))
        for figure in of_it[0][1]:
            print(f"| {figure} | " + " | ".join(f"{figures[figure]:g}" for _, figures in of_it) + " |")
        print()


if __name__ == "__main__":
    main()

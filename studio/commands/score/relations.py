"""The benchmark of relations, `studio score --relations`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from evaluation import relations as scoring
from evaluation.relations_clip import PAPER, PUBLISHED, Scenario, paper_scores, read_scenarios
from evaluation.sticker_finder import Finder
from pipelines.concepts.concept import Concept
from pipelines.errors import ConceptError, ConfigError
from pipelines.measures.clip import Clip
from studio.commands.score.flags import Benchmarks
from studio.settings import Machine
from studio.work.progress import Progress
from studio.work.runner import open_base
from trainers.stickers.relations import RELATIONS_TO_TEACH


def score_relations(
    asked: Benchmarks, only: tuple[str, ...], base: str, form: str, machine: Machine, say: Callable[[str], None]
) -> None:
    """Teach relations to pocket in every way and score them; says each as it comes, then what follows from all.

    With `asked.clip`, the paper's protocol on relations learned before.

    Raises:
        ConfigError: for a relation that is none of those, or flags that do not go together.
    """
    if (asked.clip is None) != (asked.learned is None):
        raise ConfigError("--clip and --learned belong together.", "Give both, or neither to score pocket.")
    if asked.clip is not None and asked.learned is not None:
        score_paper(asked, asked.learned, asked.clip, base, form, machine, say)
        return
    if base != "pocket":
        raise ConfigError(
            f"Relations are composed for pocket, not for {base}.", "Give --clip and --learned to score a real base."
        )
    unknown = [name for name in only if name not in RELATIONS_TO_TEACH]
    if unknown:
        raise ConfigError(f"{unknown[0]!r} is no relation to teach.", f"They are {', '.join(RELATIONS_TO_TEACH)}.")
    components, finder = open_base("pocket", machine), Finder()
    choose = scoring.BestPhrase(components, finder)
    ways = (*scoring.WAYS, *scoring.EXTENSIONS) if asked.extensions else tuple(scoring.WAYS)
    compared: dict[str, scoring.Compared] = {}
    for relation in only or RELATIONS_TO_TEACH:
        compared[relation] = scoring.compare_relation(
            components,
            finder,
            relation,
            choose(relation),
            ways,
            count=asked.pictures or scoring.PICTURES,
            on_event=Progress(relation),
        )
        if form == "table":
            say(scoring.relation_table(relation, compared[relation]))
    if form == "json":
        rows = {r: {way: one.figures() for way, one in c.tallies.items()} for r, c in compared.items()}
        say(json.dumps(rows, indent=1))
    else:
        say("\n".join(scoring.summary(compared)))
    if asked.sheet is not None:
        say(str(scoring.relation_sheet(compared).save(asked.sheet)))


def score_paper(
    asked: Benchmarks,
    folder: Path,
    clip: Path,
    base: str,
    form: str,
    machine: Machine,
    say: Callable[[str], None],
) -> None:
    """Score learned relations of a real base by the paper's protocol, with the published figures beside.

    Raises:
        ConceptError: if the folder holds no concept named after a relation.
    """
    known: dict[str, Scenario] = PAPER if asked.scenarios is None else read_scenarios(asked.scenarios)
    concepts = {name: Concept.load(path) for name in known if (path := folder / f"{name}.safetensors").exists()}
    if not concepts:
        raise ConceptError(
            f"{folder} holds no relation of the benchmark.", f"Name the files {', '.join(known)} (.safetensors)."
        )
    row = paper_scores(
        open_base(base, machine), Clip.load(clip), concepts, known, asked.pictures or 10, on_event=Progress("paper")
    )
    if form == "json":
        say(json.dumps(row, indent=1))
        return
    say(f"relation {row['relation']:.4f} (published {PUBLISHED['relation']}), chance {1 / len(known):.4f}")
    say(f"entities {row['entities']:.4f} (published {PUBLISHED['entities']})")
    say("The published relation score is of a classifier on scene graphs, which is not to be had; here CLIP decides.")

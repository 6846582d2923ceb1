"""ReVersion's protocol for real models (arXiv:2303.13495, 5.1): ten relations, ten things on each side, CLIP scores.

Relation score: the share of pictures for which CLIP prefers the right one of the ten relations, said in words with the
two things that are really meant. The paper's classifier works on scene-graph features that are not to be had, so
the figures are not the same thing. Entity score: the cosine between picture and the names of both things.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from pipelines.concepts.concept import Concept
from pipelines.errors import DataError
from pipelines.events import OnEvent, StepDone, ignore
from pipelines.generation import generate
from pipelines.measures.clip import Clip
from pipelines.models.components import Components
from pipelines.request.request import ConceptUse, Request

PUBLISHED = {"relation": 0.3817, "entities": 0.2820}
"""ReVersion's own figures in its table."""


@dataclass(frozen=True)
class Scenario:
    """A relation in words, and the things it is tried between."""

    phrase: str
    left: tuple[str, ...]
    right: tuple[str, ...]


def _scenario(phrase: str, left: str, right: str) -> Scenario:
    return Scenario(phrase, tuple(left.split(", ")), tuple(right.split(", ")))


_SCENES = {
    "painted_on": (
        "is painted on",
        "cat, dog, rabbit, lion, flower, tree, bird, fish, car, boat",
        "wall, stone, canvas, plate, wooden board, shield, vase, bag, shirt, door",
    ),
    "carved_by": (
        "is carved out of",
        "cat, dog, rabbit, lion, bear, elephant, horse, owl, dragon, rose",
        "carrot, jade, wood, marble, ice, soap, pumpkin, stone, apple, chocolate",
    ),
    "shake_hands": (
        "shakes hands with",
        "monkey, panda, dog, cat, man, woman, robot, child, rabbit, bear",
        "man, woman, robot, dog, cat, child, astronaut, panda, monkey, clown",
    ),
    "hug": (
        "hugs",
        "panda, cat, dog, monkey, child, woman, man, bear, rabbit, koala",
        "tree, pillow, dog, cat, doll, ball, man, bear, robot, pumpkin",
    ),
    "back2back": (
        "sits back to back with",
        "man, woman, cat, dog, rabbit, monkey, panda, robot, child, fox",
        "woman, man, dog, cat, bear, robot, child, rabbit, monkey, penguin",
    ),
    "inside": (
        "is inside",
        "cat, dog, rabbit, hamster, bird, flower, apple, ship, doll, fish",
        "box, basket, cup, bottle, bag, glass, drawer, jar, bowl, suitcase",
    ),
    "on": (
        "is on",
        "cat, dog, apple, cup, book, lamp, bird, ball, vase, hat",
        "table, chair, roof, stone, box, bed, grass, carpet, car, shelf",
    ),
    "hanging_from": (
        "hangs from",
        "monkey, cat, sloth, bat, lamp, swing, apple, bag, bell, spider",
        "tree, rope, ceiling, branch, hook, bridge, roof, cliff, balloon, fence",
    ),
    "wrapped_in": (
        "is wrapped in",
        "cat, dog, baby, gift, bread, apple, book, doll, rabbit, bottle",
        "blanket, towel, paper, leaf, scarf, foil, plastic, cloth, ribbon, flag",
    ),
    "ride_on": (
        "rides on",
        "monkey, cat, dog, man, woman, child, panda, robot, frog, rabbit",
        "horse, bicycle, motorbike, elephant, skateboard, turtle, dolphin, broom, camel, scooter",
    ),
}
PAPER = {name: _scenario(*scene) for name, scene in _SCENES.items()}
"""The paper's ten relations; the things are ours, the authors' may be given as a file."""


def read_scenarios(path: Path) -> dict[str, Scenario]:
    """Read scenarios from JSON: `{"hug": {"phrase": "hugs", "left": ["cat", ...], "right": [...]}}`.

    Raises:
        DataError: if it is not so.
    """
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        found = {
            str(name): Scenario(str(one["phrase"]), tuple(map(str, one["left"])), tuple(map(str, one["right"])))
            for name, one in stored.items()
        }
        if not found or not all(one.left and one.right for one in found.values()):
            raise ValueError("a relation needs things on both sides")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"The scenarios in {path} cannot be read: {error!s:.200}.",
            'Write {"hug": {"phrase": "hugs", "left": ["cat"], "right": ["tree"]}}.',
        ) from None
    return found


@torch.no_grad()
def paper_scores(
    components: Components,
    clip: Clip,
    concepts: Mapping[str, Concept],
    scenarios: Mapping[str, Scenario],
    count: int = 10,
    *,
    on_event: OnEvent = ignore,
) -> dict[str, float]:
    """Return the mean relation and entity scores of learned relations.

    Args:
        components: the base they were learned on.
        clip: measures the pictures.
        concepts: relation -> concept; some or all of the scenarios.
        scenarios: things that each is tried between; all of them are the classifier's choices.
        count: pictures of each pair of things; the paper's is 10.
        on_event: receives a step for each pair.
    """
    right: list[bool] = []
    near: list[float] = []
    total = sum(len(scenarios[name].left) * len(scenarios[name].right) for name in concepts)
    names = list(scenarios)
    done = 0
    for name, concept in concepts.items():
        for left in scenarios[name].left:
            for other in scenarios[name].right:
                request = Request(
                    prompt=f"{left} {concept.token} {other}",
                    concepts=(ConceptUse(source="relation"),),
                    count=count,
                    seed=1000 * done,
                )
                seen = clip.pictures(generate(components, request, concepts={"relation": concept}).pictures)
                said = clip.texts([f"{left} {scenarios[one].phrase} {other}" for one in names])
                right += [names[i] == name for i in (seen @ said.T).argmax(1).tolist()]
                near += (seen @ clip.texts([f"{left}, {other}"]).T).flatten().tolist()
                done += 1
                on_event(StepDone(done, total))
    return {"relation": sum(right) / len(right), "entities": sum(near) / len(near)}

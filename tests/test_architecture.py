"""The rules of the design that a reader would otherwise have to trust."""

from __future__ import annotations

import ast
import itertools
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Annotated, get_args

import pytest
from pydantic import BaseModel

from pipelines.request.request import Request
from pipelines.request.settings import FileOf
from studio.jobs.specs import of_clients, unknown_texts, unmarked_paths
from tests.waiting import LIMIT
from trainers.methods import configs
from trainers.settings import DataConfig, Destination, MethodConfig, TrainConfig

ROOT = Path(__file__).parent.parent
LAYERS = ("studio", "evaluation", "trainers", "pipelines")
SOURCES = [path for layer in LAYERS for path in sorted((ROOT / layer).rglob("*.py"))]
FORBIDDEN_NAMES = {"utils", "helpers", "common", "manager"}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down_only(path):
    own = path.relative_to(ROOT).parts[0]
    above = LAYERS[: LAYERS.index(own)]
    assert not [name for name in imports(path) if name.split(".")[0] in (*above, "tests", "benchmarks")]


def test_studio_loads_torch_in_the_runner_alone():
    users = [
        path.name for path in (ROOT / "studio").rglob("*.py") if any(n.split(".")[0] == "torch" for n in imports(path))
    ]
    assert users == ["runner.py"]


@pytest.mark.parametrize(
    "module",
    [
        "studio.cli",
        "studio.commands.concepts",
        "studio.library.concepts",
        "studio.commands.flags",
        "studio.commands.caption",
        "studio.commands.mask",
        "studio.commands.replace",
        "studio.commands.incontext",
        "studio.commands.layout",
        "studio.work.progress",
        "studio.settings",
        "pipelines.concepts.compatibility",
        "pipelines.request.request",
        "pipelines.request.axes",
        "pipelines.pictures.metadata",
        "studio.api.app",
        "studio.jobs.jobs",
        "studio.jobs.ray_engine",
        "studio.serve",
        "studio.library.datasets",
        "trainers.settings",
        "trainers.method",
        "trainers.methods",
        "trainers.commands",
        "trainers.methods.task_word",
        "trainers.base_models.grounding",
        "trainers",
    ],
)
def test_these_import_without_torch_or_ray(module):
    code = f"import sys, {module}; print('torch' in sys.modules or 'ray' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT, timeout=LIMIT
    )
    assert done.stdout.strip() == "False"


def test_ray_is_known_to_the_cluster_alone():
    assert [path.name for path in SOURCES if any(n.split(".")[0] == "ray" for n in imports(path))] == ["ray_engine.py"]


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_stay_small(path):
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno < 60, node.name
    assert not FORBIDDEN_NAMES & {path.stem} and not path.stem.startswith("base_")


def rooms():
    """Edges of the import graph, each with an import that makes it.

    A node is a room, a folder without folders of its own; files beside rooms are nodes by themselves.
    """
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in SOURCES
    }
    folders = {".".join(path.relative_to(ROOT).parent.parts) for path in SOURCES}
    ground = {one for one in folders if any(other.startswith(f"{one}.") for other in folders)}

    def room(module):
        folder = ".".join(modules[module].relative_to(ROOT).parent.parts)
        return module if folder in ground else folder

    edges = {}
    for module, path in modules.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                named = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                named = [f"{node.module}.{alias.name}" for alias in node.names]
                named = [name if name in modules else node.module for name in named]
            else:
                continue
            for name in named:
                if name in modules and room(name) != room(module):
                    edges.setdefault(room(module), {})[room(name)] = f"{module} imports {name}"
    return edges


def circle(edges):
    """The imports along a circle of a graph, or nothing."""
    done = set()

    def walk(node, way):
        if node in way:
            names = [*way[way.index(node) :], node]
            return [edges[a][b] for a, b in itertools.pairwise(names)]
        if node in done:
            return []
        found = next(filter(None, (walk(after, [*way, node]) for after in edges.get(node, ()))), [])
        done.add(node)
        return found

    return next(filter(None, (walk(node, []) for node in edges)), [])


UNET_BY_NATURE = {
    # Layers of a UNet's blocks, of GLIGEN and of Analogist, which no transformer has.
    "pipelines/conditions/analogist.py",
    "pipelines/conditions/boxes.py",
    "pipelines/conditions/regions.py",
    "pipelines/gligen/layers.py",
    "trainers/base_models/gligen.py",
    "trainers/base_models/grounding.py",
    # The nine channels of an inpainting UNet.
    "pipelines/models/inpainting_unet.py",
    "trainers/base_models/inpainting.py",
    "trainers/base_models/inpainting_unet.py",
    "trainers/base_models/model_folder.py",
    # Keys and values of cross-attention, their merging in closed form, and rows for each of its layers.
    "pipelines/concepts/parts/layer_rows.py",
    "trainers/methods/custom_diffusion.py",
    "trainers/methods/parts/merging.py",
}
"""Files that reach into a base's UNet; the list may only shrink."""

READS_CLIP = {
    # The judge and CLIP scores are CLIP models of their own; pocket's text encoder is made by its recipe.
    "pipelines/measures/clip.py",
    "pipelines/measures/judge.py",
    "pipelines/gligen/pictures.py",
    "studio/library/import_export.py",
}
BY_NAME = {
    # Layouts of files, which other programs name by the family.
    "pipelines/concepts/compatibility.py",
    "pipelines/concepts/concept.py",
    "pipelines/concepts/writers.py",
    "pipelines/models/loading.py",
    "pipelines/models/single_files.py",
    "studio/library/import_export.py",
    "studio/web/pages/teach.py",
    # Recipes, which have figures for one family.
    "trainers/base_models/grounding.py",
    "trainers/base_models/inpainting.py",
    "trainers/methods/custom_diffusion.py",
    "trainers/methods/dreambooth.py",
    "trainers/methods/p_plus.py",
    "trainers/methods/reversion.py",
    "trainers/methods/slider.py",
    "trainers/methods/textual_inversion.py",
}


def uses(tree):
    """Return what a file does that only families may: reach into a UNet, know CLIP, ask for a family's name."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr == "unet":
            owner = ast.unparse(node.value)
            found |= {"unet"} if owner in ("components", "base", "taught") or owner.endswith(".components") else set()
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("transformers"):
            found |= {"clip"} if any("CLIP" in alias.name for alias in node.names) else set()
        if isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.Eq | ast.NotEq | ast.In | ast.NotIn):
            sides = [ast.unparse(one) for one in (node.left, *node.comparators)]
            named = any(re.search(r"(^|[.])family(\.name)?$", one) for one in sides)
            found |= {"name"} if named and any(one[:1] in "'(" for one in sides) else set()
    return found


def test_only_families_know_unets_clip_and_the_names_of_families():
    assert uses(ast.parse("components.unet(x)")) == {"unet"}
    assert uses(ast.parse("from transformers import CLIPTextModel")) == {"clip"}
    assert uses(ast.parse("x = components.family.name == 'sdxl'")) == {"name"} == uses(ast.parse("family != 'pocket'"))
    exempt = {"unet": UNET_BY_NATURE, "clip": READS_CLIP, "name": BY_NAME}
    met = {kind: set() for kind in exempt}
    for path in SOURCES:
        name = str(path.relative_to(ROOT))
        if name.startswith(("pipelines/models/families/", "trainers/pretrain/")):
            continue
        for kind in uses(ast.parse(path.read_text(encoding="utf-8"))):
            met[kind].add(name)
    assert met == exempt


def test_rooms_import_in_no_circle():
    edges = rooms()
    assert len(edges) > 60 and not circle(edges)
    assert circle({"a": {"b": "a imports b"}, "b": {"a": "b imports a"}}) == ["a imports b", "b imports a"]


def test_a_public_class_has_its_name_alone():
    """A reader who searches for a class finds one."""
    where = {}
    for path in SOURCES:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                where.setdefault(node.name, []).append(str(path.relative_to(ROOT)))
    assert not {name: paths for name, paths in where.items() if len(paths) > 1}


def test_no_room_is_crowded():
    files = Counter(path.parent.relative_to(ROOT) for path in SOURCES)
    assert not {str(room): count for room, count in files.items() if count > 16}


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_parameter_is_annotated(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            bare = [a.arg for a in arguments if a.annotation is None and a.arg not in ("self", "cls")]
            assert not bare, f"{node.name}: {bare}"


def docstrings(text):
    """All docstrings of a module, those below its fields and constants among them."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""
        if isinstance(node, ast.Module | ast.ClassDef):
            for one, after in itertools.pairwise(node.body):
                if isinstance(one, ast.Assign | ast.AnnAssign) and isinstance(after, ast.Expr):
                    yield str(getattr(after.value, "value", ""))


def riddles(text):
    """First lines of docstrings that ask instead of saying: a function returns or does something, a class is one."""
    asked = re.compile(r"(What|Whatever|Whether|How|Why|Where|Who|Which|When)\b")
    return [said.splitlines()[0] for said in docstrings(text) if asked.match(said)]


OTHERS = [path for one in ("benchmarks", "docs", "tests") for path in sorted((ROOT / one).rglob("*.py"))]


@pytest.mark.parametrize("path", [*SOURCES, *OTHERS], ids=lambda p: str(p.relative_to(ROOT)))
def test_docstrings_begin_with_a_verb_or_a_noun(path):
    assert not riddles(path.read_text(encoding="utf-8"))


def test_riddles_are_found():
    assert riddles('def f():\n    """What it is.\n\n    More.\n    """\n') == ["What it is."]
    assert riddles('class A:\n    b: int\n    """How many."""\n') == ["How many."]
    assert riddles('"""Whether."""') and not riddles('"""Return whether."""')


def waits_for_ever(call):
    """Return whether a call of a thread, process, queue or other host has no limit."""
    name, given = ast.unparse(call.func), {keyword.arg for keyword in call.keywords}
    last = name.rpartition(".")[2]
    if "timeout" in given or not isinstance(call.func, ast.Attribute):
        return False
    if name in ("ray.get", "ray.wait", *(f"subprocess.{one}" for one in ("run", "call", "check_call", "check_output"))):
        return True
    if last in ("wait", "join", "acquire", "communicate", "get", "result"):
        return not call.args and not given
    if last == "waitpid":
        return "WNOHANG" not in ast.unparse(call)
    if last == "create_connection":
        return len(call.args) < 2
    return last == "urlopen"


def test_whatever_waits_has_a_limit():
    """In tests too: `tests/waiting.py` waits for conditions, threads and processes, and says for what."""
    found = []
    for path in (*SOURCES, *(path for one in ("tests", "benchmarks") for path in sorted((ROOT / one).rglob("*.py")))):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        inside = {id(one) for call in calls if ast.unparse(call.func) == "asyncio.wait_for" for one in call.args}
        found += [f"{path}:{call.lineno}" for call in calls if id(call) not in inside and waits_for_ever(call)]
    assert not found
    for text in ("thread.join()", "queue.get()", "subprocess.run(x, check=True)", "ray.get(x)", "os.waitpid(x, 0)"):
        assert waits_for_ever(ast.parse(text, mode="eval").body)


def test_chance_is_explicit():
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        for call in ast.walk(ast.parse(text)):
            if isinstance(call, ast.Call) and ast.unparse(call.func) in (
                "torch.randn",
                "torch.rand",
                "torch.randint",
                "torch.randperm",
            ):
                assert any(k.arg == "generator" for k in call.keywords), f"{path.name}:{call.lineno}"


def test_no_global_seed_is_set_outside_tests():
    for path in (*SOURCES, *sorted((ROOT / "benchmarks").rglob("*.py"))):
        called = [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Call)]
        seeds = [call.lineno for call in called if ast.unparse(call.func) in ("torch.manual_seed", "random.seed")]
        assert not seeds, f"{path.name}: {seeds}; give a generator, or use trainers.initial_weights"


def settings_within(kind):
    """The settings classes that a class is made of."""
    yield kind
    for field in kind.model_fields.values():
        parts = [field.annotation]
        for part in parts:
            parts += get_args(part)
            if isinstance(part, type) and issubclass(part, BaseModel):
                yield from settings_within(part)


def test_of_every_text_of_a_request_it_is_known_whether_it_names_a_file():
    """Clients name files by ids. Mark a path with `Annotated[str, FileOf("picture")]`, or add a plain text to TEXTS."""
    unknown = {name for kind in settings_within(Request) for name in unknown_texts(kind)}
    assert unknown == {"adapter", "sam", "unet"}  # which clients cannot set


def test_every_path_of_a_training_is_marked():
    """Mark a path with `Annotated[Path, FileOf("dataset")]`: it is an id for clients; "own" keeps it from them."""
    kinds = {*configs().values(), DataConfig, TrainConfig, Destination}
    unmarked = {f"{kind.__name__}.{name}" for kind in kinds for name in unmarked_paths(kind)}
    assert not unmarked
    decided = {name for kind in kinds for name, field in kind.model_fields.items() if not of_clients(name, field)}
    assert decided == {"cache", "output", "overwrite", "base", "start"}


def test_a_path_that_is_not_marked_is_refused_to_clients():
    class Careless(MethodConfig):
        folder: Path | None = None
        """A folder."""
        own: Annotated[Path | None, FileOf("dataset")] = None
        """A marked one."""

    assert unmarked_paths(Careless) == {"folder"}
    assert [of_clients(name, field) for name, field in Careless.model_fields.items()] == [False, True]

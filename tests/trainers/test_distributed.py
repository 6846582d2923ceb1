"""Several processes give what one gives with the whole batch."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipelines.concepts.concept import Concept
from pipelines.errors import ConfigError
from tests import tiny
from tests.waiting import run, statuses
from trainers import __main__ as command_line
from trainers.distributed import ALONE, WHOLE, BatchShare, Processes, launched
from trainers.loop.launch import narrowed
from trainers.loop.train import train
from trainers.methods import methods
from trainers.methods.textual_inversion import TextualInversionConfig
from trainers.run import Run
from trainers.settings import DataConfig, Destination, TrainConfig

ROOT = Path(__file__).parent.parent.parent


def test_parts_are_cut_from_one_draw():
    def draw(count):
        return torch.rand(count, 3, generator=torch.Generator().manual_seed(0))

    assert torch.equal(torch.cat([BatchShare(k, 3).of(draw, 2) for k in range(3)]), draw(6))
    assert torch.equal(WHOLE.of(draw, 6), draw(6))


def test_alone_nothing_is_asked_of_anybody(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert launched() is ALONE and ALONE.main and ALONE.part == WHOLE
    weight = torch.nn.Parameter(torch.ones(2))
    weight.grad = torch.tensor([1.0, 2.0])
    ALONE.average([weight])
    assert weight.grad.tolist() == [1, 2] and ALONE.mean({"a": 3.0}) == {"a": 3.0}
    assert ALONE.any(True) and not ALONE.any(False) and ALONE.broadcast("x") == "x"
    with ALONE.main_first():
        pass


class Echo:
    """The part of accelerate where two processes have the same: the mean of a thing and twice that thing."""

    device = torch.device("cpu")

    def reduce(self, tensor, how):
        assert how == "mean"
        return (tensor + 2 * tensor) / 2


def test_gradients_are_averaged_in_one_message_and_none_stays_none():
    weights = [torch.nn.Parameter(torch.ones(shape)) for shape in ((2, 2), (3,), (1,))]
    weights[0].grad, weights[2].grad = torch.full((2, 2), 2.0), torch.tensor([4.0])
    Processes(1, 2, Echo()).average(weights)
    assert weights[0].grad.tolist() == [[3, 3], [3, 3]] and weights[1].grad is None and weights[2].grad.tolist() == [6]
    assert Processes(1, 2, Echo()).mean({"a": 2.0, "b": 4.0}) == {"a": 3.0, "b": 6.0}
    assert not Processes(1, 2, Echo()).main and Processes(1, 2, Echo()).part == BatchShare(1, 2)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    base, pictures = tmp_path_factory.mktemp("base"), tmp_path_factory.mktemp("pictures")
    tiny.sd_pipeline().save_pretrained(base)
    for example in tiny.examples():
        example.picture.save(pictures / example.name)
    return base, pictures


def arguments(folders, output, batch, *more):
    base, pictures = folders
    flags = ["--images", pictures, "--base", base, "--token", "<x>", "--class-word", "fox", "--text-encoder"]
    pace = ["--batch", batch, "--steps", 3, "--learning-rate", 3e-3, "--seed", 5, "--pivotal", "--prior-scope", "world"]
    return ["dreambooth", *map(str, [*flags, *pace, "--output", output, *more])]


def launch(command, arguments, **environment):
    clean = {key: value for key, value in os.environ.items() if key not in ("WORLD_SIZE", "RANK", "MASTER_ADDR")}
    environment = clean | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment}
    return run([*command, *arguments], env=environment)


def port():
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return str(one.getsockname()[1])


def test_two_processes_give_what_one_gives_with_twice_the_batch(folders, tmp_path):
    accelerate = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", "--cpu"]
    command = [*accelerate, "--main_process_port", port(), "-m", "trainers"]
    done = launch(command, arguments(folders, tmp_path / "two.safetensors", 2))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("two.safetensors") == 1 and "2 processes, 2 pictures each" in done.stderr
    assert command_line.main(arguments(folders, tmp_path / "one.safetensors", 4)) == 0
    two, one = (Concept.load(tmp_path / f"{name}.safetensors") for name in ("two", "one"))
    assert set(two.tensors()) == set(one.tensors())
    start = train_start(folders)
    moved = 0.0
    # Sums in another order differ in their last bits, which Adam magnifies in proportion to the rate.
    for name, tensor in one.tensors().items():
        torch.testing.assert_close(two.tensors()[name], tensor, atol=1e-4, rtol=0)
        moved = max(moved, float((tensor - start[name]).abs().max()))
    assert moved > 5e-3, "it is something learned that is the same"
    logs = [(tmp_path / f"{name}.losses.jsonl").read_text() for name in ("two", "one")]
    first, second = (json.loads(log.splitlines()[-1]) for log in logs)
    assert first == pytest.approx(second, abs=1e-5) and first["step"] == 3
    assert not list(tmp_path.glob(".*"))


# -- several subjects, and relations -----------------------------------------------------------------------------

CASES = {
    "subjects": ("dreambooth", {"token": "<a>", "class_word": "fox", "also": ("there:<b>:car",), "pivotal": True,
                                "text_encoder": True, "cut_mix": 0.4, "prior_scope": "world"}),
    "keys and values": ("custom-diffusion", {"token": "<a>", "class_word": "fox", "also": ("there:<b>:car",)}),
    "relation": ("reversion", {"token": "<r>", "init": "and", "left": "fox", "right": "cat", "lora": True}),
}  # fmt: skip


def learned(case, batch, processes=ALONE):
    """Return the tensors that so many processes learn, partners included, each with a batch of that size."""
    name, settings = CASES[case]
    method = methods()[name]
    pace = TrainConfig(steps=3, batch=batch, learning_rate=1e-3, scale_lr=False, seed=5)
    the_run = Run(method, method.Settings(**settings), pace, DataConfig(images=Path("unused"), flip=0.0))
    pictures = tiny.examples(4)
    if name != "reversion":
        pictures = [replace(one, word=word) for one, word in zip(pictures, ("<a>", "<b>") * 2, strict=True)]
    concept = train(tiny.sd(), the_run, pictures, processes=processes)
    return {f"{one.token} {key}": t for one in (concept, *concept.partners) for key, t in one.tensors().items()}


def forked(rank, where, folder):
    """One of two processes that learn all cases together, as a fork of this one; gives its id."""
    child = os.fork()
    if child:
        return child
    try:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "true"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": where}
        processes = launched()
        for case in CASES:
            tensors = learned(case, 1, processes)
            torch.save(tensors, folder / f"{case}-{rank}.pt")
        os._exit(0)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(1)


def test_two_processes_learn_several_subjects_and_relations_as_one_does(tmp_path, one_thread):
    where = port()
    children = [forked(rank, where, tmp_path) for rank in range(2)]
    alone = {case: learned(case, 2) for case in CASES}
    assert statuses(*children) == [0, 0]
    for case, one in alone.items():
        first, second = (torch.load(tmp_path / f"{case}-{rank}.pt") for rank in range(2))
        assert first.keys() == second.keys() == one.keys()
        assert all(torch.equal(first[key], second[key]) for key in first), "both have the same"
        assert len({key.split()[0] for key in one}) == (1 if case == "relation" else 2)
        for key, tensor in one.items():
            torch.testing.assert_close(first[key], tensor, atol=1e-5, rtol=0)
        assert (
            max(
                float(tensor.abs().max())
                for key, tensor in one.items()
                if "lora_up" in key or "lora_B" in key or ".diff" in key
            )
            > 5e-4
        )


def train_start(folders):
    """The concept before its first step: trained at a rate of nearly nothing."""
    from pipelines.models.loading import load
    from trainers.data.folders import read_folder

    method = methods()["dreambooth"]
    config = method.Settings(token="<x>", class_word="fox", text_encoder=True, pivotal=True)
    pace = TrainConfig(steps=1, batch=1, learning_rate=1e-12, scale_lr=False, seed=5, weight_decay=0.0)
    run = Run(method, config, pace, DataConfig(images=folders[1]))
    return train(load(folders[0]), run, read_folder(folders[1]).examples).tensors()


def test_several_processes_asked_of_a_launcher_that_starts_one_are_not_silently_one(folders, tmp_path):
    """`accelerate launch --cpu` leaves several to MPI; the number is in its configuration file alone."""
    asked = {"ACCELERATE_USE_CPU": "true", "MASTER_ADDR": "127.0.0.1"}
    done = launch([sys.executable, "-m", "trainers"], arguments(folders, tmp_path / "x.safetensors", 1), **asked)
    assert done.returncode == 2 and "torchrun --nproc_per_node" in done.stderr and not list(tmp_path.iterdir())


def test_one_that_was_asked_for_is_not_launched_again(monkeypatch):
    for environment in ({}, {"ACCELERATE_USE_CPU": "true"}, {"MASTER_ADDR": "a"}):
        with monkeypatch.context() as patched:
            for key in ("ACCELERATE_USE_CPU", "MASTER_ADDR", "WORLD_SIZE"):
                patched.delenv(key, raising=False)
            for key, value in environment.items():
                patched.setenv(key, value)
            command_line.relaunched([])


@pytest.mark.parametrize(
    ("more", "said"),
    [(["--batch", "0"], "batch"), (["--steps", "many"], "steps"), (["--images", "nowhere"], "nowhere")],
)
def test_what_is_wrong_is_one_sentence(folders, tmp_path, capsys, more, said):
    given = arguments(folders, tmp_path / "x.safetensors", 1)
    given[given.index(more[0]) + 1] = more[1]
    assert command_line.main(given) == 2
    shown = capsys.readouterr().err
    assert said in shown and shown.startswith("trainers: ") and shown.count("\n") == 1


# -- precision ---------------------------------------------------------------------------------------------------


def a_run(method, config, precision):
    pace = TrainConfig(steps=2, batch=1, learning_rate=1e-2, scale_lr=False, precision=precision)
    return Run(method, config, pace, DataConfig(images=Path("unused")))


def precisions(components):
    return [module.dtype for module in components.modules()]


def test_what_is_frozen_is_narrow_and_what_is_trained_is_not():
    narrow, wide = torch.bfloat16, torch.float32
    for name, settings, expected in (
        ("textual-inversion", {"init": "fox"}, [narrow, narrow, wide]),
        ("dreambooth", {"class_word": "fox"}, [narrow, narrow, narrow]),
        ("dreambooth", {"class_word": "fox", "text_encoder": True}, [narrow, narrow, wide]),
        ("dreambooth", {"class_word": "fox", "form": "full"}, [wide, narrow, narrow]),
        ("custom-diffusion", {"class_word": "fox"}, [wide, narrow, wide]),
    ):
        method = methods()[name]
        config = method.Settings(token="<x>" if name != "dreambooth" else "zwx", **settings)
        assert precisions(narrowed(tiny.sd(), a_run(method, config, "bf16"))) == expected
        assert precisions(narrowed(tiny.sd(), a_run(method, config, "no"))) == [wide] * 3


@pytest.mark.parametrize("form", ["rows", "low-rank", "full"])
def test_in_bfloat16_it_learns_nearly_the_same_and_keeps_float32(form):
    name, config = {
        "rows": ("textual-inversion", TextualInversionConfig(token="<x>", init="fox")),
        "low-rank": ("dreambooth", methods()["dreambooth"].Settings(token="<x>", class_word="fox", pivotal=True)),
        "full": (
            "dreambooth",
            methods()["dreambooth"].Settings(token="<x>", class_word="fox", pivotal=True, form="full"),
        ),
    }[form]
    concepts = []
    for precision in ("no", "bf16"):
        the_run = a_run(methods()[name], config, precision)
        concepts.append(train(narrowed(tiny.sd(), the_run), the_run, tiny.examples()))
    exact, narrow = (concept.rows[0] for concept in concepts)
    assert narrow.dtype == torch.float32 and torch.isfinite(narrow).all()
    # The mean: Adam's first steps send an entry whose gradient is nearly nothing either way.
    assert 0 < float((exact - narrow).abs().mean()) < 0.05


def test_the_destination_is_checked_before_anything_is_loaded(tmp_path):
    def destination(token, where):
        config = TextualInversionConfig(token=token, init="fox")
        run = Run(methods()["textual-inversion"], config, TrainConfig(), DataConfig(images=Path("unused")), where)
        (path,) = run.require_free()
        return path

    (tmp_path / "x.safetensors").write_bytes(b"mine")
    where = Destination(output=tmp_path / "x")
    with pytest.raises(ConfigError, match="is there already"):
        destination("<x>", where)
    assert destination("<x>", where.model_copy(update={"overwrite": True})) == tmp_path / "x.safetensors"
    assert destination("<my cat>", Destination()) == Path("outputs/concepts/my-cat.safetensors")

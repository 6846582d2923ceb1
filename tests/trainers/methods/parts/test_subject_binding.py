"""Surroundings of binding a subject: class pictures, identifiers, averages, memory, bad input, Custom Diffusion."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from pipelines.concepts.concept import Concept
from pipelines.concepts.formats.delta_tensors import same
from pipelines.concepts.token_embeddings import single_rows
from pipelines.errors import Cancelled, ConceptError, ConfigError, DataError
from pipelines.events import StepDone
from tests import tiny
from trainers.data.class_images import class_examples
from trainers.loop.ema import EMA
from trainers.loop.train import probe, train
from trainers.methods.custom_diffusion import CustomDiffusion, CustomDiffusionConfig
from trainers.methods.dreambooth import DreamBooth, DreamBoothConfig
from trainers.methods.parts.identifiers import check_identifier, collision, rare_identifiers
from trainers.methods.parts.merging import merged, readers
from trainers.run import Run
from trainers.settings import DataConfig, TrainConfig
from trainers.stickers.world import NAMES, scenes

TEMPLATES = ("a photo of {}", "a drawing of {}")


def config(**settings):
    pictures = {"num_class_images": 5} if settings.get("prior", "pictures") == "pictures" else {}
    return DreamBoothConfig(**{"token": "z", "class_word": "fox", "prior": "pictures"} | pictures | settings)


def run(steps=3, own=None, **pace):
    pace = {"steps": steps, "batch": 2, "learning_rate": 1e-3, "scale_lr": False} | pace
    return Run(DreamBooth(), own or config(prior="none"), TrainConfig(**pace), DataConfig(images="unused", flip=0.0))


# -- class pictures ----------------------------------------------------------------------------------------------


def test_class_pictures_are_made_once_and_only_for_this_base_and_prompt(tmp_path):
    base = tiny.sd()
    events = []
    first = class_examples(base, config(), TEMPLATES, folder=tmp_path, on_event=events.append)
    assert [event.step for event in events if isinstance(event, StepDone)] == [2, 4, 5]
    assert len(first) == 5 and {example.captions[0] for example in first} == {"a photo of fox", "a drawing of fox"}
    events.clear()
    again = class_examples(base, config(), TEMPLATES, folder=tmp_path, on_event=events.append)
    assert not events
    assert [e.picture.tobytes() for e in again] == [e.picture.tobytes() for e in first]
    other = tiny.sd(seed=1)
    assert class_examples(other, config(), TEMPLATES, folder=tmp_path)[0].picture != first[0].picture
    class_examples(base, config(class_prompt="one fox"), TEMPLATES, folder=tmp_path)
    assert len(list(tmp_path.iterdir())) == 3, "one folder for each base and prompt"


def test_more_class_pictures_keep_those_that_are_there(tmp_path):
    base = tiny.sd()
    few = class_examples(base, config(num_class_images=3), TEMPLATES, folder=tmp_path)
    many = class_examples(base, config(num_class_images=12), TEMPLATES, folder=tmp_path)
    assert [e.picture.tobytes() for e in many[:3]] == [e.picture.tobytes() for e in few]
    assert {e.captions[0] for e in many} == {"a photo of fox", "a drawing of fox"}


def test_making_class_pictures_can_be_stopped_and_goes_on(tmp_path):
    base, asked = tiny.sd(), iter([False, True])
    with pytest.raises(Cancelled, match="2 of 20 pictures that the base draws"):
        class_examples(base, config(num_class_images=20), TEMPLATES, folder=tmp_path, should_stop=lambda: next(asked))
    steps = []
    class_examples(base, config(num_class_images=20), TEMPLATES, folder=tmp_path, on_event=steps.append)
    assert [event.step for event in steps] == list(range(4, 21, 2))


def test_a_class_folder_of_another_base_is_refused(tmp_path):
    class_examples(tiny.sd(), config(), TEMPLATES, folder=tmp_path)
    (folder,) = tmp_path.iterdir()
    given = config(class_images=folder)
    assert len(class_examples(tiny.sd(), given, TEMPLATES, folder=tmp_path)) == 5
    with pytest.raises(DataError, match=r"made with another base .*Leave --class-images out"):
        class_examples(tiny.sd(seed=1), given, TEMPLATES, folder=tmp_path)
    (folder / "class.json").write_text("{")
    with pytest.raises(DataError, match="another base"):
        class_examples(tiny.sd(), given, TEMPLATES, folder=tmp_path)


def test_a_class_folder_of_ones_own_pictures_is_used(tmp_path):
    Image.new("RGB", (20, 20), "red").save(tmp_path / "a.png")
    Image.new("RGB", (20, 20), "blue").save(tmp_path / "b.png")
    (tmp_path / "b.txt").write_text("a blue fox")
    listed = class_examples(tiny.sd(), config(class_images=tmp_path), TEMPLATES, folder=tmp_path / "unused")
    assert [example.captions for example in listed] == [("a photo of fox",), ("a blue fox",)]
    assert not (tmp_path / "unused").exists()


def test_training_with_class_pictures_reports_both_terms(tmp_path):
    events = []
    concept = train(tiny.sd(), run(own=config()), tiny.examples(), class_folder=tmp_path, on_event=events.append)
    terms = [event.terms for event in events if isinstance(event, StepDone) and event.terms]
    assert terms and {"denoise", "prior"} <= set(terms[-1])
    assert concept.card.recipe["prior"] == "pictures" and "class_images" not in concept.card.recipe


def test_class_pictures_do_not_go_into_buckets(tmp_path):
    the_run = Run(DreamBooth(), config(), TrainConfig(steps=1), DataConfig(images="x", buckets=True))
    with pytest.raises(ConfigError, match=r"squares.*--prior model"):
        train(tiny.sd(), the_run, tiny.examples(), class_folder=tmp_path)


# -- identifiers --------------------------------------------------------------------------------------------------


def test_an_identifier_of_several_tokens_is_refused_with_one_that_would_do():
    with pytest.raises(ConfigError, match=r"'qzxw' is \d tokens .*such as '\w+'.*--pivotal") as error:
        check_identifier(tiny.sd(), "qzxw")
    offered = str(error.value).split("such as '")[1].split("'")[0]
    check_identifier(tiny.sd(), offered)


def test_offered_identifiers_are_one_token_in_every_encoder_and_free_of_known_words():
    base = tiny.sdxl()
    listed = rare_identifiers(base, "fox", 8)
    assert len(listed) == 8 and [one.pull for one in listed] == sorted(one.pull for one in listed)
    words = {one.word for one in listed}
    assert not words & {"fox", "to", "and", "of", "the", "sks", "blue"}
    for word in words:
        assert all(len(tokenizer(word, add_special_tokens=False).input_ids) == 1 for tokenizer in base.tokenizers)
    assert not {one.word for one in rare_identifiers(base, "fox", 8, avoid=words)} & words


def test_a_word_that_looks_free_and_is_not_is_said():
    assert collision("sks") == "a rifle" and collision("SKS") == "a rifle" and collision("zwx") is None


# -- averages, memory, room ---------------------------------------------------------------------------------------


def test_a_moving_average_is_its_closed_form():
    weight = torch.nn.Parameter(torch.zeros(3))
    average, expected = EMA({"w": weight}, 0.9), torch.zeros(3)
    for step in range(1, 200):
        with torch.no_grad():
            weight.fill_(float(step))
        average.update()
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
        torch.testing.assert_close(average.values["w"], expected)  # early updates count more
    with average.shown():
        torch.testing.assert_close(weight.detach(), expected)
    assert float(weight[0].detach()) == 199.0


def test_the_result_is_the_average_and_survives_a_stop(tmp_path):
    base, settings = tiny.sd(), {"steps": 6, "ema": 0.9, "learning_rate": 1e-2}
    whole = train(base, run(**settings), tiny.examples())
    plain = train(base, run(**settings | {"ema": 0.0}), tiny.examples())
    key = next(iter(whole.tensors()))
    assert not torch.equal(whole.tensors()[key], plain.tensors()[key])
    asked, state = iter([False] * 3 + [True]), tmp_path / "state.pt"
    with pytest.raises(Cancelled):
        train(base, run(**settings), tiny.examples(), keep=state, should_stop=lambda: next(asked))
    resumed = train(base, run(**settings), tiny.examples(), keep=state)
    assert all(torch.equal(a, resumed.tensors()[name]) for name, a in whole.tensors().items())


def test_gradient_checkpointing_changes_memory_and_nothing_else():
    base = tiny.sd()
    plain = train(base, run(), tiny.examples())
    saved = train(base, run(gradient_checkpointing=True), tiny.examples())
    for name, tensor in plain.tensors().items():
        torch.testing.assert_close(tensor, saved.tensors()[name], atol=1e-6, rtol=1e-5)
    assert not base.unet.is_gradient_checkpointing


def test_eight_bit_moments_need_their_package():
    with pytest.raises(ConfigError, match=r"bitsandbytes is not installed.*--optimizer adamw"):
        train(tiny.sd(), run(optimizer="adamw8bit"), tiny.examples())


def test_too_little_disk_is_said_before_training(tmp_path, monkeypatch):
    import shutil

    monkeypatch.setattr(shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(1 << 30, 1 << 30, 1000))
    events = []
    with pytest.raises(ConfigError, match="MiB are needed"):
        train(
            tiny.sd(), run(own=config(form="full", prior="none")), tiny.examples(), keep=tmp_path / "state.pt",
            on_event=events.append,
        )  # fmt: skip
    assert not any(isinstance(event, StepDone) for event in events) and not list(tmp_path.iterdir())


def test_a_probe_counts_what_is_trained_and_leaves_no_trace():
    base = tiny.sd()
    before = tiny.snapshot(base)
    tried = probe(base, run(own=config(form="full")), tiny.examples())
    boxes = sum(p.numel() for n, p in base.unet.named_parameters() if "fuser" in n or "position_net" in n)
    assert tried.trained == sum(p.numel() for p in base.unet.parameters()) - boxes
    assert 0 < tried.seconds < 60 and tiny.same(before, base)


# -- Custom Diffusion ---------------------------------------------------------------------------------------------


ORDINARY = [item.caption for item in scenes(200, 1)]


def custom(token, seed=0, base=None, steps=6):
    method = CustomDiffusion()
    own = CustomDiffusionConfig(token=token, class_word="fox", prior="none")
    pace = TrainConfig(steps=steps, batch=2, learning_rate=2e-2, scale_lr=False, seed=seed)
    return train(base or tiny.sd(), Run(method, own, pace, DataConfig(images="x", flip=0.0)), tiny.examples())


def test_only_keys_and_values_of_cross_attention_change():
    base = tiny.sd()
    concept = custom("<a>", base=base)
    assert set(concept.changes) == {f"unet.{name}" for name in readers(base)}
    assert all(".attn2.to_" in key for key in concept.changes) and concept.card.method == "custom-diffusion"


def test_merged_concepts_read_their_own_words_as_each_did_alone():
    """The constraint of eq. 6: what a layer makes of each concept's words is what that concept's own weights made."""
    base = tiny.sd()
    apart = [custom("<a>", 0, base), custom("<b>", 1, base)]
    joint = merged(base, apart, ORDINARY)
    assert same(joint[0].changes, joint[1].changes)
    key = f"unet.{readers(base)[0]}"
    weight = base.unet.get_parameter(readers(base)[0])
    for concept, one in zip(apart, joint, strict=True):
        with Concept(one.card, one.rows).attach(base) as taught:
            ids = taught.tokenizers[0]([f"a {one.token}"], return_tensors="pt").input_ids
            states = taught.text_encoders[0](ids).last_hidden_state[0, 2:]  # from the word on
        alone = states @ concept.changes[key].changed(weight, 1.0).T
        together = states @ joint[0].changes[key].changed(weight, 1.0).T
        plain = states @ weight.T
        assert (together - alone).norm() < 0.15 * (plain - alone).norm()


def test_merged_concepts_change_ordinary_captions_less_than_their_sum():
    base = tiny.sd()
    apart = [custom("<a>", 2, base), custom("<b>", 3, base)]
    joint = merged(base, apart, ORDINARY)
    ids = base.tokenizers[0](
        [item.caption for item in scenes(40, 2, names=NAMES[:48])], padding="max_length", return_tensors="pt"
    )
    states = base.text_encoders[0](ids.input_ids).last_hidden_state.flatten(0, 1)
    for name in readers(base):
        key = f"unet.{name}"
        together = states @ joint[0].changes[key].difference.float().T
        summed = states @ sum(one.changes[key].difference.float() for one in apart).T
        assert together.norm() < summed.norm()


def test_of_all_weights_that_read_the_words_so_merged_ones_change_ordinary_captions_least():
    """Beside the solution of least norm, which eq. 6 gives where captions count alike in all directions."""
    base = tiny.sd()
    joint = merged(base, [custom("<a>", 0, base), custom("<b>", 1, base)], ORDINARY)
    words = []
    for one in joint:
        with Concept(one.card, one.rows).attach(base) as taught:
            ids = taught.tokenizers[0]([f"a {one.token}"], return_tensors="pt").input_ids
            words.append(taught.text_encoders[0](ids).last_hidden_state[0, 2:].detach())
    read = torch.cat(words)
    ordinary = base.tokenizers[0](ORDINARY, padding=True, return_tensors="pt")
    states = base.text_encoders[0](ordinary.input_ids).last_hidden_state[ordinary.attention_mask.bool()]
    for name in readers(base):
        change = joint[0].changes[f"unet.{name}"].difference.float()
        least = (torch.linalg.pinv(read, rtol=1e-2) @ (read @ change.T)).T  # the same on the words
        assert (states @ change.T).norm() < 0.8 * (states @ least.T).norm()


def test_merging_needs_two_concepts_of_its_kind(tmp_path):
    base = tiny.sd()
    one = custom("<a>", base=base)
    with pytest.raises(ConceptError, match="1 concepts cannot be merged"):
        merged(base, [one], ["a house"])
    other = train(base, run(), tiny.examples())
    with pytest.raises(ConceptError, match="no Custom Diffusion concept"):
        merged(base, [one, other], ["a house"])


# -- files of other kinds -----------------------------------------------------------------------------------------


def test_a_lora_for_another_base_is_refused_in_words(tmp_path):
    concept = train(tiny.sd(), run(), tiny.examples())
    path = concept.save(tmp_path / "x.safetensors")
    said = r"made for Stable Diffusion 1.x \(tiny\)"
    with pytest.raises(ConceptError, match=said), Concept.load(path).attach(tiny.sdxl()):
        pass
    nameless = Concept(concept.card.model_copy(update={"family": ""}), (), concept.changes)
    with pytest.raises(ConceptError, match=r"changes unet\.\S+ as a weight of"), nameless.attach(tiny.sd(dim=1024)):
        pass


def test_foreign_keys_are_refused_in_words(tmp_path):
    from safetensors.torch import save_file

    good = {
        "unet.conv_in.lora_A.weight": torch.ones(2, 4, 3, 3),
        "unet.conv_in.lora_B.weight": torch.ones(16, 2, 1, 1),
    }
    save_file(good | {"lora_unet_x.alpha": torch.zeros(1)}, tmp_path / "mixed.safetensors")
    with pytest.raises(ConceptError, match=r"1 tensors that are no changed weights, such as 'lora_unet_x.alpha'"):
        Concept.load(tmp_path / "mixed.safetensors")
    save_file({"unet.conv_in.lora_A.weight": torch.zeros(2, 4, 3, 3)}, tmp_path / "half.safetensors")
    with pytest.raises(ConceptError, match=r"pair of unet\.conv_in is broken"):
        Concept.load(tmp_path / "half.safetensors")
    missing = {key.replace("conv_in", "nowhere"): value for key, value in good.items()}
    save_file(missing, tmp_path / "nowhere.safetensors")
    with (
        pytest.raises(ConceptError, match=r"changes unet\.nowhere\.weight, which tiny does not have"),
        Concept.load(tmp_path / "nowhere.safetensors").attach(tiny.sd()),
    ):
        pass


def test_numbers_that_are_not_finite_are_refused(tmp_path):
    concept = train(tiny.sd(), run(), tiny.examples())
    key = next(iter(concept.changes))
    concept.changes[key].up.fill_(float("nan"))
    with pytest.raises(ConceptError, match="not finite"):
        Concept.load(concept.save(tmp_path / "nan.safetensors"))


def test_what_is_written_says_what_it_is(tmp_path):
    from safetensors import safe_open

    path = train(tiny.sd(), run(), tiny.examples()).save(tmp_path / "x.safetensors")
    with safe_open(path, "pt") as stored:
        metadata = stored.metadata()
        alphas = {float(stored.get_tensor(name)) for name in stored.keys() if name.endswith(".alpha")}  # noqa: SIM118
    assert alphas == {4.0} and "lora_adapter_metadata" not in metadata  # diffusers refuses two places for an alpha
    assert metadata["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert metadata["modelspec.trigger_phrase"] == "z fox"


@pytest.mark.parametrize("method", [DreamBooth(), CustomDiffusion()])
def test_a_class_of_two_words_starts_from_its_last(method):
    base = tiny.sd()
    pivotal = {"pivotal": True} if method.name == "dreambooth" else {}
    own = method.Settings(token="<x>", class_word="red fox", prior="none", **pivotal)
    with method.prepare(base, own, torch.Generator().manual_seed(0)) as trainable:
        fox = base.text_encoders[0].get_input_embeddings().weight[base.tokenizers[0]("fox").input_ids[1]]
        assert torch.equal(trainable.parameters["rows_0"][0].detach(), fox)


@pytest.mark.parametrize(("alpha", "text"), [(None, False), (2.0, True)])
def test_how_far_a_run_has_come_is_told(alpha, text):
    base, steps = tiny.sd(), []
    config = DreamBooth.Settings(token="<x>", class_word="fox", pivotal=True, rank=3, alpha=alpha, text_encoder=text)
    pace = TrainConfig(steps=20, batch=1, learning_rate=1e-2, scale_lr=False)
    told = lambda event: steps.append(event.terms) if isinstance(event, StepDone) else None  # noqa: E731
    concept = train(base, Run(DreamBooth(), config, pace, DataConfig(images="unused")), tiny.examples(), on_event=told)
    changes = [change.up.flatten(1) @ change.down.flatten(1) * change.scale for change in concept.changes.values()]
    assert steps[-1]["change"] == pytest.approx(float(torch.cat([one.flatten() for one in changes]).norm()), rel=1e-4)
    (start,), (row,) = single_rows(base, "fox"), concept.rows
    assert steps[-1]["displacement"] == pytest.approx(float((row - start).norm()), rel=1e-4)
    assert 0 < steps[0]["change"] < steps[-1]["change"]

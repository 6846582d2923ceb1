"""Autoencoder, judge, scorer, card and command of the pre-training, each against figures worked out another way."""

from __future__ import annotations

import json
import math
import os

import pytest
import torch

from pipelines.errors import ModelError
from pipelines.events import Note, StepDone
from pipelines.measures.judge import Judge
from pipelines.models import POCKET
from pipelines.pictures.tensors import to_pictures
from trainers.loop.loop import step_generator
from trainers.pretrain import __main__ as command
from trainers.pretrain import judge as judge_stage
from trainers.pretrain import prepared, stages
from trainers.pretrain.card import CHANCE, GOALS, write_card
from trainers.pretrain.parts import autoencoder, text_config
from trainers.pretrain.score import _pair_right
from trainers.pretrain.vae import _even_out, pictures, psnr
from trainers.pretrain.vocabulary import build_tokenizer
from trainers.stickers.world import HELD_OUT, NAMES, RELATIONS, Scene, Stickers, plural, scenes

# -- autoencoder ------------------------------------------------------------------------------------------------


@pytest.fixture
def vae():
    torch.manual_seed(0)
    return autoencoder().eval().requires_grad_(False)


@pytest.fixture(scope="module")
def composed():
    return pictures(12, 3, 64, "cpu", names=("fox", "house", "pear"))


def test_evened_out_every_channel_has_no_mean_and_the_spread_the_factor_undoes(vae, composed):
    before = vae.encoder(composed)
    _even_out(vae, composed)
    after = vae.encoder(composed)
    torch.testing.assert_close(after.mean((0, 2, 3)), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(vae.config["scaling_factor"] * after.std((0, 2, 3)), torch.ones(4), atol=1e-3, rtol=0)
    # Each channel was only shifted and scaled: what was told apart is told apart still.
    for channel in range(4):
        pair = torch.stack((before[:, channel].flatten(), after[:, channel].flatten()))
        assert float(torch.corrcoef(pair)[0, 1]) == pytest.approx(1, abs=1e-4)


def test_evening_out_twice_is_evening_out_once(vae, composed):
    _even_out(vae, composed)
    once, factor = vae.encoder(composed), vae.config["scaling_factor"]
    _even_out(vae, composed)
    torch.testing.assert_close(vae.encoder(composed), once, atol=1e-4, rtol=1e-3)
    assert vae.config["scaling_factor"] == pytest.approx(factor, rel=1e-3)


def test_psnr_is_ten_times_the_logarithm_of_peak_over_error(vae, composed):
    restored = vae.decoder(vae.encoder(composed)).clamp(-1, 1)
    levels = (composed + 1) * 127.5, (restored + 1) * 127.5  # the definition, in 0..255
    each = [10 * math.log10(255**2 / float((a - b).square().mean())) for a, b in zip(*levels, strict=True)]
    assert psnr(vae, composed) == pytest.approx(sum(each) / len(each), abs=1e-3)


def test_pictures_of_the_pool_come_from_their_seed_and_names_alone(composed):
    assert composed.shape == (12, 3, 64, 64) and float(composed.abs().max()) <= 1
    again = pictures(12, 3, 64, "cpu", names=("fox", "house", "pear"))
    assert torch.equal(composed, again)
    assert torch.equal(pictures(5, 3, 64, "cpu", names=("fox", "house", "pear")), composed[:5])


# -- judge ------------------------------------------------------------------------------------------------------


def test_crops_hold_the_whole_box_in_the_middle_half(composed):
    """A white square on black: its extent in the crop says how the margin was drawn."""
    images = torch.full((40, 3, 64, 64), -1.0)
    images[:, :, 20:40, 10:30] = 1.0
    boxes = torch.tensor([[10, 20, 30, 40]]).expand(40, 4) / 64
    crops = judge_stage._crops(images, boxes, torch.Generator().manual_seed(0))
    shares = (crops[:, 0] > 0).float().mean((1, 2))
    # Margins of 1 to 1.5: a share of 1 down to 1 / 2.25; moved by up to 7.5 % of the thing, some of it may be lost.
    assert float(shares.min()) > 0.4 and float(shares.max()) <= 1.0 and float(shares.max() - shares.min()) > 0.3
    assert bool((crops[:, :, 32, 32] == 1).all())


def test_a_quarter_of_the_pictures_are_neither_blurred_nor_noised(composed):
    images = composed.repeat(25, 1, 1, 1)
    worn = judge_stage._wear(images, torch.Generator().manual_seed(1))
    untouched = torch.isclose(worn, images, atol=1e-6).flatten(1).all(1).float().mean()
    assert float(untouched) == pytest.approx(0.25, abs=0.08)
    assert float((worn - images).abs().mean()) < 0.1, "worn, not ruined"


def test_what_starts_the_generator_was_never_shown_a_held_out_word(tmp_path, monkeypatch):
    """Their rows got no gradient: they are where they began but for the decay that all weights share."""
    monkeypatch.setattr(judge_stage, "POOL", 64)
    tokenizer = build_tokenizer()
    torch.manual_seed(2)  # as the stage does
    began = Judge(tokenizer, text_config(tokenizer)).text.state_dict()  # of a judge of its own: never trained
    notes = []
    judge = judge_stage.train_judge(tmp_path, steps=5, size=64, device="cpu", on_event=notes.append, batch=8)
    kept = torch.load(tmp_path / judge_stage.START, weights_only=True)
    key = "text_model.embeddings.token_embedding.weight"

    def moved(table, words):
        """Return the distance of each word's row from where it began, relative to its length."""
        ids = torch.tensor(tokenizer(list(words), add_special_tokens=False).input_ids).flatten()
        return ((table[ids] - began[key][ids]).norm(dim=1) / began[key][ids].norm(dim=1)).tolist()

    unseen = [*HELD_OUT, *map(plural, HELD_OUT), "inside"]
    assert max(moved(kept[key], unseen)) < 1e-5, "no gradient, only decay"
    assert min(moved(kept[key], NAMES)) > 1e-4
    assert min(moved(judge.state_dict()[f"text.{key}"], HELD_OUT)) > 1e-4, "the judge itself learns them afterwards"
    assert any(isinstance(note, Note) and "after 2 steps; now with the held-out names" in note.text for note in notes)


def test_the_first_losses_of_a_judge_are_those_of_guessing():
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    judge = Judge(tokenizer, text_config(tokenizer), widths=(8, 8, 8, 8))
    with torch.no_grad():
        judge.log_scale.fill_(-20.0)  # so that all similarities are alike
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judge_stage, "POOL", 32)
        pool = judge_stage._Pool(("fox", "house", "pear"), tuple(RELATIONS), 1, 64, "cpu")
    with torch.no_grad():
        terms = judge_stage._losses(judge, pool, 16, step_generator(0, 0))
    assert float(terms["captions"]) == pytest.approx(math.log(16), abs=1e-3)
    assert float(terms["names"]) == pytest.approx(math.log(3), abs=1e-3)


# -- scorer -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured():
    """Pictures as right as can be, of pairs, and the judge that ships."""
    names = ("fox", "house", "pear", "robot", "heart", "bus")
    listed = [item for relation in RELATIONS for item in scenes(6, 51, names=names, relation=relation, colour="gray")]
    return Judge.load(POCKET / "judge"), listed, to_pictures(Stickers(names=names).render(listed).images)


def shares(measured, asked):
    judge, listed, drawn = measured
    verdicts = [_pair_right(judge, picture, asked(item)) for picture, item in zip(drawn, listed, strict=True)]
    return [sum(column) / len(verdicts) for column in zip(*verdicts, strict=True)]


def test_the_scorer_accepts_the_truth(measured):
    named, right = shares(measured, lambda item: item)
    assert named >= 0.9 and right == named


def test_the_scorer_tells_the_order_of_two_things(measured):
    opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    truth, _ = shares(measured, lambda item: item)
    for told in (
        lambda item: Scene("", item.stickers, item.colour, "relation", opposite[item.relation]),
        lambda item: Scene("", item.stickers[::-1], item.colour, "relation", item.relation),
    ):
        assert shares(measured, told) == [truth, 0.0], "both are there, but not as told"


def test_the_scorer_wants_both_things_and_no_others(measured):
    def doubled(item):
        return Scene("", (item.stickers[0],) * 2, item.colour, "relation", item.relation)

    assert shares(measured, doubled) == [0.0, 0.0]
    judge, listed, _ = measured
    alone = to_pictures(Stickers(names=("fox",)).render(scenes(3, 52, names=("fox",), kind="one")).images)
    assert [_pair_right(judge, picture, listed[0]) for picture in alone] == [(False, False)] * 3


# -- card, packing, command -------------------------------------------------------------------------------------

FACTS = {"device": "a toaster", "size": 64, "steps": 6000, "batch": 64, "minutes": 59.7}
SCORES = {key: 0.5 for key in GOALS} | {key: 0.0179 for key in CHANCE.values()}
SCORES |= {"prompts": 200, "steps": 25, "guidance": 3.0}


def test_the_card_weighs_what_is_there_and_counts_what_was_seen(tmp_path):
    for name, size in (("unet", 2 << 20), ("vae", 1 << 19)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "m.safetensors").write_bytes(bytes(size))
    (tmp_path / "unet" / "other.bin").write_bytes(bytes(1 << 20))
    text = write_card(tmp_path, FACTS, SCORES).read_text()
    assert "Weights: 2.5 MiB" in text
    assert "a toaster, 64 px, 6000 steps of 64 (384,000 pictures seen by the UNet in 60 minutes)" in text


def test_the_card_tells_every_training_the_last_first(tmp_path):
    first = FACTS | {"steps": 10, "device": "an abacus"}
    text = write_card(tmp_path, FACTS | {"earlier": FACTS | {"steps": 20, "earlier": first}}, SCORES).read_text()
    told = [line for line in text.splitlines() if "rained on: " in line]
    assert [line.split(", ")[2].split()[0] for line in told] == [str(FACTS["steps"]), "20", "10"]
    assert [line.startswith("- Trained on") for line in told] == [True, False, False] and "an abacus" in told[-1]


def test_the_card_shows_every_goal_with_its_chance_where_there_is_one(tmp_path):
    rows = [line for line in write_card(tmp_path, FACTS, SCORES).read_text().splitlines() if "**" in line]
    assert len(rows) == len(GOALS)
    for (key, (meaning, least, goal)), row in zip(GOALS.items(), rows, strict=True):
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert cells == [meaning, "**0.500**", "0.0179" if key in CHANCE else "", str(least), str(goal)]
        assert least < goal


def test_a_card_without_a_figure_is_not_written(tmp_path):
    with pytest.raises(KeyError, match="judge_top1_real"):
        write_card(tmp_path, FACTS, {key: value for key, value in SCORES.items() if key != "judge_top1_real"})
    assert not list(tmp_path.iterdir())


def test_minutes_of_a_stage_leave_out_its_pauses_and_other_stages(tmp_path):
    log = tmp_path / "log.jsonl"
    times = [("judge", 0), ("unet", 100), ("unet", 160), ("judge", 170), ("unet", 220), ("unet", 9000), ("unet", 9030)]
    log.write_text("".join(json.dumps({"stage": stage, "time": time}) + "\n" for stage, time in times))
    assert stages.minutes_in(log, "unet") == pytest.approx((60 + 60 + 30) / 60)
    assert stages.minutes_in(log, "vae") == 0


def test_a_model_is_worth_the_mean_of_what_a_user_notices():
    scores = {
        "one_object_drawn": 0.9,
        "two_objects_drawn": 0.6,
        "background_right": 0.6,
        "two_objects_and_relation": 0.3,
    }
    assert stages._worth(scores | {"judge_top1_real": 0.0}) == pytest.approx(0.6)


def test_a_model_is_put_in_place_whole_and_what_an_earlier_kill_left_is_cleared(tmp_path):
    new, out = tmp_path / "packed", tmp_path / "pocket"
    for folder, text in (
        (new, "new"),
        (out, "old"),
        (tmp_path / ".pocket.new", "half"),
        (tmp_path / ".pocket.old", "x"),
    ):
        folder.mkdir()
        (folder / text).write_text(text)
    stages._put_in_place(new, out)
    assert [path.name for path in out.iterdir()] == ["new"], "nothing of the old model is left among the new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["packed", "pocket"]


def run(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["pretrain", *arguments])
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1")  # otherwise the process is replaced
    return command.main()


def test_the_unet_before_its_parts_is_one_sentence_and_exit_code_2(monkeypatch, tmp_path, capsys):
    assert run(monkeypatch, "unet", "--work", str(tmp_path), "--device", "cpu") == 2
    said = capsys.readouterr().err
    assert "There is no vae" in said and "python -m trainers.pretrain vae" in said and len(said.splitlines()) == 1


def test_scoring_a_folder_without_a_model_is_one_sentence_and_exit_code_2(monkeypatch, tmp_path, capsys):
    assert run(monkeypatch, "score", "--out", str(tmp_path), "--device", "cpu") == 2
    said = capsys.readouterr().err
    assert str(tmp_path) in said and "Traceback" not in said


def test_an_unknown_stage_is_refused_with_those_there_are(monkeypatch, capsys):
    with pytest.raises(SystemExit) as raised:
        run(monkeypatch, "paint")
    assert raised.value.code == 2
    said = capsys.readouterr().err
    assert all(stage in said for stage in ("paint", "vae", "judge", "text", "unet", "pack", "score"))


def test_progress_is_printed_and_logged_as_lines_of_json(tmp_path, capsys):
    show = command._show("text", tmp_path / "log.jsonl")
    show(StepDone(50, 200, {"layout": 0.25}, 12.4))
    show(Note("half way"))
    show(StepDone(100, 200, {"layout": 0.125}, 24.9))
    assert capsys.readouterr().out.splitlines() == [
        "text 50/200 12 s  layout 0.2500",
        "text: half way",
        "text 100/200 25 s  layout 0.1250",
    ]
    logged = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(line["stage"], line["step"], line["layout"]) for line in logged] == [
        ("text", 50, 0.25),
        ("text", 100, 0.125),
    ]


def test_a_model_is_carried_away_in_pieces_and_put_together_again(tmp_path, monkeypatch):
    monkeypatch.setattr(prepared, "SHARD", 1000)
    folder = tmp_path / "model"
    for name, size in (("unet/weights.bin", 2500), ("training.json", 10)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(os.urandom(size))
    pieces = prepared.split(folder, tmp_path / "shards")
    assert len(pieces) > 2 and all(piece.stat().st_size <= 1000 for piece in pieces)
    again = prepared.join(tmp_path / "shards", tmp_path / "again")
    for name in ("unet/weights.bin", "training.json"):
        assert (again / name).read_bytes() == (folder / name).read_bytes()
    pieces[1].unlink()
    with pytest.raises(ModelError, match=r"no whole model.*Copy all pieces"):
        prepared.join(tmp_path / "shards", tmp_path / "again")
    assert (again / "training.json").exists(), "what was there stays"


def test_steps_of_a_stage_are_those_of_its_last_report(tmp_path):
    log = tmp_path / "log.jsonl"
    assert stages.steps_in(log, "unet") == 0 and stages.minutes_in(log, "unet") == 0
    log.write_text("".join(json.dumps({"stage": s, "step": n, "time": 0}) + "\n" for s, n in [("unet", 50), ("x", 90)]))
    assert stages.steps_in(log, "unet") == 50

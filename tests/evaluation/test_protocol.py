"""Protocols: their counts out of the real caption files, and what is refused."""

from __future__ import annotations

import json
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from mavcli.errors import InputError, UsageError
from mavcli.evaluation import protocol
from mavcli.evaluation.protocol import apportion, choose, find_preset, presets, prompts_of


def test_msrvtt_gives_the_papers_59794_captions(shared_data: Path) -> None:
    file = shared_data / "prompts" / "msrvtt" / "test_videodatainfo.json.zip"
    prompts = prompts_of(find_preset("msrvtt"), file)
    assert len(prompts) == find_preset("msrvtt").samples == 59_794
    assert len(protocol.msrvtt_captions(file, per_video="every", ascii_only=False)) == 59_800
    assert all(prompt.text.isascii() for prompt in prompts)
    assert [prompt.sample for prompt in prompts] == list(range(59_794))
    assert prompts[0].text == "a band performing in a small club"


def test_msrvtt_2990_is_one_caption_of_each_test_video(shared_data: Path) -> None:
    file = shared_data / "prompts" / "msrvtt" / "test_videodatainfo.json.zip"
    assert len(prompts_of(find_preset("msrvtt-2990"), file)) == 2990


def test_the_training_split_of_msrvtt_is_no_test_set(shared_data: Path) -> None:
    with pytest.raises(InputError, match="no caption of the test split"):
        prompts_of(find_preset("msrvtt"), shared_data / "prompts" / "msrvtt" / "train_val_annotation.zip")


def test_ucf101_has_101_sentences_and_10000_samples_by_class(shared_data: Path) -> None:
    folder = shared_data / "prompts" / "ucf101"
    assert all(
        len(set(protocol.ucf101_sentences(folder, name).values())) == 101 for name in ("pyoco", "classname")
    )
    prompts = prompts_of(find_preset("ucf101"), folder)
    assert len(prompts) == 10_000 and len({prompt.text for prompt in prompts}) == 101
    found = Counter(prompt.label for prompt in prompts)
    training = protocol.ucf101_training_counts(folder)
    assert sum(training.values()) == 9537 and len(training) == 101
    for label, count in training.items():
        assert abs(found[label] - 10_000 * count / 9537) < 1
    other = prompts_of(find_preset("ucf101"), folder, sentences="snapvideo")
    assert Counter(prompt.label for prompt in other) == found and other != prompts


def test_class_names_become_words() -> None:
    assert [protocol._split_name(name) for name in ("ApplyEyeMakeup", "YoYo", "TaiChi", "Punch")] == [
        "apply eye makeup",
        "yo yo",
        "tai chi",
        "punch",
    ]


def test_drawbench_has_200_prompts(shared_data: Path) -> None:
    assert (
        len(
            prompts_of(find_preset("drawbench"), shared_data / "prompts" / "dalle3_prompts" / "drawbench.txt")
        )
        == 200
    )


def test_vdms_28_prompts_have_eight_samples_each(tmp_path: Path) -> None:
    file = tmp_path / "vdm.txt"
    file.write_text("\n".join(f"prompt {i}" for i in range(28)))
    prompts = prompts_of(find_preset("vdm"), file)
    assert len(prompts) == find_preset("vdm").samples == 224
    assert [prompt.sample for prompt in prompts] == list(range(224))
    assert set(Counter(prompt.text for prompt in prompts).values()) == {8}


def test_shares_sum_to_the_total_and_stay_within_one_of_their_quota() -> None:
    weights = {"a": 1, "b": 1, "c": 1, "d": 7}
    found = apportion(weights, 101)
    assert sum(found.values()) == 101
    assert all(abs(found[name] - 101 * weight / 10) < 1 for name, weight in weights.items())


def test_a_part_of_the_prompts_has_the_mixture_of_the_whole() -> None:
    prompts = [protocol.Prompt(str(i), i, "ab"[i >= 60]) for i in range(100)]
    assert Counter(p.label for p in choose(prompts, 10)) == {"a": 6, "b": 4}
    assert choose(prompts, 100) == prompts
    with pytest.raises(UsageError, match="101 samples of 100"):
        choose(prompts, 101)


def captions(path: Path, rows: list[tuple[str, str]], *, split: str = "test") -> Path:
    videos = [{"video_id": video, "split": split} for video in dict.fromkeys(video for video, _ in rows)]
    sentences = [{"video_id": v, "caption": c, "sen_id": i} for i, (v, c) in enumerate(rows)]
    path.write_text(json.dumps({"videos": videos, "sentences": sentences}))
    return path


def test_captions_keep_the_order_of_their_numbers_and_lose_what_is_not_ascii(tmp_path: Path) -> None:
    file = captions(
        tmp_path / "x.json", [("v1", "sautéing"), ("v1", "a pan"), ("v2", "a cat"), ("v1", "a fire")]
    )
    assert protocol.msrvtt_captions(file, per_video="every", ascii_only=True) == ["a pan", "a cat", "a fire"]
    assert protocol.msrvtt_captions(file, per_video="first", ascii_only=True) == ["a pan", "a cat"]
    assert protocol.msrvtt_captions(file, per_video="first", ascii_only=False) == ["sautéing", "a cat"]


def test_a_file_with_another_count_is_refused(tmp_path: Path) -> None:
    file = captions(tmp_path / "x.json", [("v1", "a pan")])
    with pytest.raises(InputError, match=r"gives 1 captions, preset `msrvtt` counts 59,794"):
        prompts_of(find_preset("msrvtt"), file)


@pytest.mark.parametrize(
    ("name", "wanted"), [("msrvtt", "test_videodatainfo.json"), ("drawbench", "a text file")]
)
def test_a_folder_where_a_preset_reads_one_file_says_which(tmp_path: Path, name: str, wanted: str) -> None:
    with pytest.raises(InputError, match=f"is a folder, preset `{name}` reads one file") as raised:
        prompts_of(find_preset(name), tmp_path)
    assert raised.value.hint is not None and wanted in raised.value.hint


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is no JSON"),
        (b"[]", "not MSR-VTT's layout"),
        (b'{"videos": [{}], "sentences": []}', "not MSR-VTT's layout"),
        (b'{"videos": [], "sentences": []}', "no caption of the test split"),
        (b"\xff\xfe", "is no JSON"),
    ],
)
def test_a_damaged_caption_file_is_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(InputError, match=message):
        prompts_of(find_preset("msrvtt"), tmp_path / "x.json")


def test_a_zip_without_captions_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(InputError, match="holds 0 files named"):
        prompts_of(find_preset("msrvtt"), tmp_path / "x.zip")
    with pytest.raises(InputError, match="cannot read .*no such file"):
        prompts_of(find_preset("msrvtt"), tmp_path / "none.zip")


def test_classes_that_the_training_list_lacks_are_refused(tmp_path: Path) -> None:
    (tmp_path / "classInd.txt").write_text("1 Archery\n2 Punch\n")
    (tmp_path / "trainlist01.txt").write_text("Archery/v_1.avi 1\n")
    with pytest.raises(InputError, match="differ in 1 classes, the first is `Punch`"):
        protocol.ucf101_training_counts(tmp_path)
    (tmp_path / "classInd.txt").write_text("Archery\n")
    with pytest.raises(InputError, match="is not UCF-101's layout"):
        protocol.ucf101_classes(tmp_path)


def test_without_captions_the_layout_is_named() -> None:
    with pytest.raises(UsageError) as caught:
        prompts_of(find_preset("ucf101"), None)
    assert "trainlist01.txt" in str(caught.value.hint)


def test_every_preset_fixes_its_choices_and_a_wrong_name_is_met_with_the_nearest() -> None:
    assert list(presets()) == [
        "msrvtt", "msrvtt-2990", "ucf101", "ucf101-finetuned", "drawbench", "own-300", "vdm", "film", "film-300", "pocket"
    ]  # fmt: skip
    for preset in presets().values():
        for metric in preset.metrics:
            if metric.metric in ("fvd", "fid"):
                assert metric.layer and metric.resize and metric.covariance and metric.frames
    with pytest.raises(UsageError, match="did you mean `msrvtt`"):
        find_preset("msrvt")

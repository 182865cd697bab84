from __future__ import annotations

import csv
from pathlib import Path

import pytest

from data_prep.sources.labels import UCF_GROUP, Labelling, read_labels
from dynamonet.errors import UserError
from tests.conftest import REAL_DATA


def labels(dataset: str, paths: list[str], root: Path, lists: Path | None = None) -> Labelling:
    return read_labels(dataset, paths, root, str(lists) if lists else None, 0.3)


def ucf_lists(folder: Path) -> Path:
    folder.mkdir()
    (folder / "classInd.txt").write_text("1 Archery\n2 Biking\n")
    a, b, c = (
        f"{name}/v_{name}_{group}.avi"
        for name, group in (("Archery", "g01_c01"), ("Archery", "g02_c01"), ("Biking", "g01_c03"))
    )
    for split, (train, test) in enumerate((([a], [b, c]), ([b], [a, c]), ([a, c], [b])), 1):
        (folder / f"trainlist0{split}.txt").write_text("".join(f"{x} 1\n" for x in train))
        (folder / f"testlist0{split}.txt").write_text("".join(f"{x}\n" for x in test))
    return folder


def test_ucf101_takes_all_three_splits_and_counts_disagreements(tmp_path: Path) -> None:
    lists = ucf_lists(tmp_path / "ucfTrainTestlist")
    paths = [
        "UCF-101/Archery/v_Archery_g01_c01.avi",
        "UCF-101/Biking/v_Biking_g01_c03.mp4",  # converted, still the listed video
        "UCF-101/Biking/v_Biking_g09_c01.avi",
    ]
    found = labels("ucf101", paths, tmp_path / "nowhere", lists)
    assert found.classes == ["Archery", "Biking"] and found.num_splits == 3
    assert found.labels[paths[0]].splits == ("train", "test", "train")
    assert found.labels[paths[0]].group == "Archery/g01"
    assert found.labels[paths[1]].splits == ("test", "test", "train")
    assert found.missing == ["Archery/v_Archery_g02_c01.avi"]
    assert found.unlisted == [paths[2]]


def test_official_lists_are_found_beside_the_videos(tmp_path: Path) -> None:
    (tmp_path / "UCF-101").mkdir()
    ucf_lists(tmp_path / "ucfTrainTestlist")
    assert labels("ucf101", [], tmp_path / "UCF-101").classes == ["Archery", "Biking"]


def test_missing_lists_name_where_they_were_looked_for(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"(?s)testTrainMulti_7030.*--lists"):
        labels("hmdb51", [], tmp_path)


def test_hmdb51_codes_are_train_test_and_not_used(tmp_path: Path) -> None:
    for split, codes in enumerate(("1 2 0", "2 1 0", "0 0 1"), 1):
        names = ("A_wave_f_0.avi", "A_wave_f_1.avi", "B_wave_f_0.avi")
        text = "".join(f"{n} {c} \n" for n, c in zip(names, codes.split(), strict=True))
        (tmp_path / f"wave_test_split{split}.txt").write_text(text)
    paths = ["wave/A_wave_f_0.avi", "wave/B_wave_f_0.avi"]
    found = labels("hmdb51", paths, tmp_path, tmp_path)
    assert found.labels[paths[0]].splits == ("train", "test", "")
    assert found.labels[paths[1]].splits == ("", "", "train")
    assert found.labels[paths[0]].group == "wave/A"
    assert found.missing == ["wave/A_wave_f_1.avi"]


def test_a_damaged_list_names_its_line(tmp_path: Path) -> None:
    (tmp_path / "wave_test_split1.txt").write_text("clip.avi train\n")
    with pytest.raises(UserError, match="expected `name"):
        labels("hmdb51", [], tmp_path, tmp_path)


def test_kinetics_matches_by_video_and_start(tmp_path: Path) -> None:
    (tmp_path / "val.csv").write_text(
        "label,youtube_id,time_start,time_end,split\n"
        "air drumming,abcdefghijk,5,15,val\nabseiling,AAAAAAAAAAA,0,10,val\n"
    )
    (tmp_path / "train.csv").write_text(
        "label,youtube_id,time_start,time_end,split\nabseiling,abcdefghijk,50,60,train\n"
    )
    paths = ["val/air drumming/abcdefghijk_000005_000015.mp4", "AAAAAAAAAAA.mp4", "other.mp4"]
    found = labels("kinetics400", paths, tmp_path, tmp_path)
    assert found.classes == ["abseiling", "air drumming"] and found.num_splits == 1
    assert found.labels[paths[0]].class_name == "air drumming"
    assert found.labels[paths[1]].splits == ("val",)
    assert found.unlisted == ["other.mp4"]
    assert found.missing == ["abcdefghijk from 50 s"]


def test_class_folders_draw_a_test_share_and_part_folders_are_taken_as_they_are(
    tmp_path: Path,
) -> None:
    paths = [f"{c}/{i}.mp4" for c in ("run", "sit") for i in range(100)]
    found = labels("folder", [*paths, "stray.mp4"], tmp_path)
    tests = sum(label.splits == ("test",) for label in found.labels.values())
    assert 40 < tests < 80 and found.classes == ["run", "sit"] and found.unlisted == ["stray.mp4"]
    parted = labels("folder", ["Train/run/a.mp4", "valid/run/b.mp4", "test/sit/c.mp4"], tmp_path)
    assert [label.splits[0] for label in parted.labels.values()] == ["train", "val", "test"]
    assert parted.classes == ["run", "sit"]


@pytest.mark.parametrize("pattern", [None, r"_(g\d+)_"])
def test_clips_of_one_video_stay_on_one_side_of_a_drawn_split(
    tmp_path: Path, pattern: str | None
) -> None:
    paths = [f"Biking/v_Biking_g{g:02d}_c{c:02d}.avi" for g in range(1, 26) for c in range(1, 5)]
    found = read_labels("folder", paths, tmp_path, None, 0.3, pattern or UCF_GROUP).labels
    sides: dict[str, set[str]] = {}
    for label in found.values():
        sides.setdefault(label.group, set()).add(label.splits[0])
    assert len(sides) == 25 and all(len(each) == 1 for each in sides.values())
    assert {side for each in sides.values() for side in each} == {"train", "test"}
    (other,) = read_labels("folder", ["a/b.mp4"], tmp_path, None, 0.3).labels.values()
    assert other.group == "a/b.mp4"


def test_a_csv_gives_labels_groups_and_folds_as_splits(tmp_path: Path) -> None:
    (tmp_path / "own.csv").write_text(
        "path,class,fold,group\na.mp4,run,0,s1\nb.mp4,sit,1,s2\nc.mp4,sit,10,s3\n"
    )
    found = labels("folder", ["a.mp4", "b.mp4", "d.mp4"], tmp_path)
    assert found.num_splits == 3
    assert found.labels["a.mp4"].splits == ("test", "train", "train")
    assert found.labels["b.mp4"].splits == ("train", "test", "train")
    assert found.labels["b.mp4"].group == "s2"
    assert (found.missing, found.unlisted) == (["c.mp4"], ["d.mp4"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("file,label\na,b\n", "no column path; it has file, label"),
        ("path,kind\na,b\n", "no column `label`"),
        ("path,label,split\na.mp4,run,exam\n", "line 2: split 'exam', expected train, val or test"),
        ("path,label,split\na.mp4,run,test\na.mp4,run,test\n", "line 3: a.mp4 was listed before"),
        ("path,label,split\n,run,test\n", "line 2: empty path"),
        ("path,label\n", "no rows"),
    ],
)
def test_a_wrong_csv_says_what_is_wrong(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "own.csv").write_text(content)
    with pytest.raises(UserError, match=message):
        labels("folder", ["a.mp4"], tmp_path, tmp_path / "own.csv")


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("dataset", "lists", "classes", "listed"),
    [
        ("ucf101", "ucfTrainTestlist", 101, 13320),
        ("hmdb51", "hmdb51_testTrainMulti_7030_splits", 51, 6766),
        ("kinetics400", "kinetics400", 400, 19880),
    ],
)
def test_the_official_lists_are_read_whole(
    dataset: str, lists: str, classes: int, listed: int
) -> None:
    source = REAL_DATA / "singles" / dataset
    paths = [p.relative_to(source).as_posix() for p in sorted(source.glob("*/*"))]
    found = labels(dataset, paths, source, REAL_DATA / "splits" / lists)
    assert len(found.classes) == classes
    assert abs(len(found.labels) + len(found.missing) - listed) < 200
    assert found.labels


def test_a_csv_without_split_draws_whole_groups(tmp_path: Path) -> None:
    rows = [f"{i}.mp4,run,scene{i // 5}" for i in range(200)]
    (tmp_path / "own.csv").write_text("path,label,group\n" + "\n".join(rows))
    paths = [f"{i}.mp4" for i in range(200)]
    found = labels("folder", paths, tmp_path)
    sides: dict[str, set[tuple[str, ...]]] = {}
    for label in found.labels.values():
        sides.setdefault(label.group, set()).add(label.splits)
    assert len(sides) == 40 and all(len(side) == 1 for side in sides.values())
    tests = sum(label.splits == ("test",) for label in found.labels.values())
    assert 20 < tests < 100
    assert found.class_counts() == {"run": 200}


@pytest.mark.parametrize(
    ("dataset", "name", "content", "message"),
    [
        ("folder", "own.csv", "path,label\na.mp4\n", "line 2: 1 fields, expected 2"),
        ("folder", "own.csv", "path,label\na.mp4,b\nc,d,e\n", "line 3: 3 fields, expected 2"),
        ("folder", "own.csv", 'path,label\n"a\nb",c\nd\n', "line 4: 1 fields"),
        ("folder", "own.csv", 'path,label\na,"b"c\n', "line 2: damaged"),
        (
            "folder",
            "own.csv",
            "path,label,split,group\na,x,train,s1\nb,x,test,s2\nc,x,test,s1\n",
            "line 4: group 's1' is on another side of a split than in line 2",
        ),
        (
            "folder",
            "own.csv",
            "path,label,fold,group\na,x,0,s1\nb,x,1,s1\n",
            "line 3: group 's1' is on another side",
        ),
        ("ucf101", "classInd.txt", "1 Archery\nBiking\n", "line 2: expected `number Class`"),
        ("hmdb51", "wave_test_split1.txt", "a.avi 1\n\nb.avi 7\n", "line 3: expected `name.avi"),
        (
            "kinetics400",
            "val.csv",
            "label,youtube_id,time_start,time_end,split\na,b,soon,1,val\n",
            "line 2: time_start 'soon'",
        ),
    ],
)
def test_a_damaged_line_is_named_by_its_number(
    tmp_path: Path, dataset: str, name: str, content: str, message: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        labels(dataset, ["a.mp4"], tmp_path, tmp_path / name if dataset == "folder" else tmp_path)


def official(dataset: str, lists: Path) -> list[str]:
    """Returns paths of all listed videos in the layout in which the data set is unpacked."""
    if dataset == "ucf101":
        files = [lists / f"{part}list01.txt" for part in ("train", "test")]
        names = {line.split()[0] for file in files for line in file.read_text().splitlines()}
        return sorted(f"UCF-101/{name}" for name in names)
    if dataset == "hmdb51":
        return sorted(
            f"{file.stem.removesuffix('_test_split1')}/{line.rpartition(' ')[0].strip()}"
            for file in lists.glob("*_test_split1.txt")
            for line in map(str.strip, file.read_text().splitlines())
        )
    with (lists / "kinetics-400_val.csv").open(newline="") as file:
        return sorted(
            f"val/{row['label']}/{row['youtube_id']}_{int(row['time_start']):06d}_"
            f"{int(row['time_end']):06d}.mp4"
            for row in csv.DictReader(file)
        )


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("dataset", "folder", "classes", "videos"),
    [
        ("ucf101", "ucfTrainTestlist", 101, 13320),
        ("hmdb51", "hmdb51_testTrainMulti_7030_splits", 51, 6766),
        ("kinetics400", "kinetics400", 400, 19000),
    ],
)
def test_every_listed_video_of_the_official_layouts_is_found_in_all_classes(
    dataset: str, folder: str, classes: int, videos: int, tmp_path: Path
) -> None:
    lists = REAL_DATA / "splits" / folder
    paths = official(dataset, lists)
    found = labels(dataset, paths, tmp_path, lists)
    assert len(found.labels) == len(paths) >= videos and not found.unlisted
    counts = found.class_counts()
    assert len(counts) == classes and min(counts.values()) > 10


@pytest.mark.real_data
def test_no_group_of_ucf101_stands_on_both_sides(tmp_path: Path) -> None:
    lists = REAL_DATA / "splits/ucfTrainTestlist"
    found = labels("ucf101", official("ucf101", lists), tmp_path, lists)
    for split in range(3):
        sides: dict[str, set[str]] = {}
        for label in found.labels.values():
            sides.setdefault(label.group, set()).add(label.splits[split])
        assert len(sides) == 101 * 25 and all(len(side) == 1 for side in sides.values())

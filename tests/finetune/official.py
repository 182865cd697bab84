"""HMDB51, UCF101 and Kinetics-400 of full shape: every class, lists as the official ones, videos
rendered. One listed video of each set is missing, and one that is there is not listed.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from torchvision.models.video import R3D_18_Weights

from tests.conftest import moving_frames, write_video

HMDB51 = (
    "brush_hair cartwheel catch chew clap climb climb_stairs dive draw_sword dribble drink eat "
    "fall_floor fencing flic_flac golf handstand hit hug jump kick kick_ball kiss laugh pick pour "
    "pullup punch push pushup ride_bike ride_horse run shake_hands shoot_ball shoot_bow shoot_gun "
    "sit situp smile smoke somersault stand swing_baseball sword sword_exercise talk throw turn "
    "walk wave"
).split()
UCF101 = (
    "ApplyEyeMakeup ApplyLipstick Archery BabyCrawling BalanceBeam BandMarching BaseballPitch "
    "Basketball BasketballDunk BenchPress Biking Billiards BlowDryHair BlowingCandles "
    "BodyWeightSquats Bowling BoxingPunchingBag BoxingSpeedBag BreastStroke BrushingTeeth "
    "CleanAndJerk CliffDiving CricketBowling CricketShot CuttingInKitchen Diving Drumming Fencing "
    "FieldHockeyPenalty FloorGymnastics FrisbeeCatch FrontCrawl GolfSwing Haircut Hammering "
    "HammerThrow HandstandPushups HandstandWalking HeadMassage HighJump HorseRace HorseRiding "
    "HulaHoop IceDancing JavelinThrow JugglingBalls JumpingJack JumpRope Kayaking Knitting "
    "LongJump Lunges MilitaryParade Mixing MoppingFloor Nunchucks ParallelBars PizzaTossing "
    "PlayingCello PlayingDaf PlayingDhol PlayingFlute PlayingGuitar PlayingPiano PlayingSitar "
    "PlayingTabla PlayingViolin PoleVault PommelHorse PullUps Punch PushUps Rafting "
    "RockClimbingIndoor RopeClimbing Rowing SalsaSpin ShavingBeard Shotput SkateBoarding Skiing "
    "Skijet SkyDiving SoccerJuggling SoccerPenalty StillRings SumoWrestling Surfing Swing "
    "TableTennisShot TaiChi TennisSwing ThrowDiscus TrampolineJumping Typing UnevenBars "
    "VolleyballSpiking WalkingWithDog WallPushups WritingOnBoard YoYo"
).split()
KINETICS400: list[str] = R3D_18_Weights.KINETICS400_V1.meta["categories"]
FILM = "(Rad)Schlag_die_Bank!"  # begins names of HMDB51


def render(files: Iterator[Path]) -> None:
    """Renders a video under each name but the first, and one that no list has."""
    first, *others = files
    added = first.with_stem("not_in_the_lists")
    for seed, file in enumerate([*others, added]):
        write_video(file, moving_frames(8, 32, 40, seed=seed), fps=12, codec="mpeg4")


def make_hmdb51(folder: Path) -> None:
    """Three films a class, each the test part of one split and left out of the next."""
    lists = folder / "hmdb51_testTrainMulti_7030_splits"
    lists.mkdir(parents=True)
    names = {c: [f"{FILM}_{n}_{c}_f_cm_np1_le_med_{n}.avi" for n in range(4)] for c in HMDB51}
    for name, split in ((name, split) for name in HMDB51 for split in (1, 2, 3)):
        codes = {split - 1: "2", split % 3: "0"}  # of the others: train
        lines = [f"{file} {codes.get(n, '1')} \n" for n, file in enumerate(names[name])]
        (lists / f"{name}_test_split{split}.txt").write_text("".join(lines))
    render(folder / "hmdb51" / name / file for name in HMDB51 for file in names[name])


def make_ucf101(folder: Path) -> None:
    """Three groups a class, each the test part of one split."""
    lists = folder / "ucfTrainTestlist"
    lists.mkdir(parents=True)
    numbered = [f"{number} {name}\r\n" for number, name in enumerate(UCF101, 1)]
    (lists / "classInd.txt").write_bytes("".join(numbered).encode())
    files = [f"{name}/v_{name}_g0{group}_c01.avi" for name in UCF101 for group in (1, 2, 3)]
    for split in (1, 2, 3):
        tested = [file for file in files if f"_g0{split}_" in file]
        numbers = {name: number for number, name in enumerate(UCF101, 1)}
        trained = [f"{f} {numbers[f.split('/')[0]]}" for f in files if f not in tested]
        (lists / f"testlist0{split}.txt").write_bytes("\r\n".join([*tested, ""]).encode())
        (lists / f"trainlist0{split}.txt").write_bytes("\r\n".join([*trained, ""]).encode())
    render(folder / "UCF-101" / file for file in files)


def make_kinetics400(folder: Path) -> None:
    """A training and a validation video a class, and test videos without labels."""
    lists = folder / "kinetics400_lists"
    lists.mkdir(parents=True)
    ids = {part: [f"{part:-<7}{n:04d}" for n in range(400)] for part in ("train", "val", "test")}
    for part, own in ids.items():
        head = (
            "youtube_id,time_start,time_end,split"
            if part == "test"
            else "label,youtube_id,time_start,time_end,split,is_cc"
        )
        lines = [
            f'"{name}",{video},10,20,{part},0' if part != "test" else f"{video},10,20,test"
            for name, video in zip(KINETICS400, own, strict=True)
        ]
        (lists / f"kinetics-400_{part}.csv").write_text("\n".join([head, *lines, ""]))
    render(
        folder / "kinetics400" / part / name.replace(" ", "_") / f"{video}_000010_000020.mp4"
        for part in ("train", "val")
        for name, video in zip(KINETICS400, ids[part], strict=True)
    )

"""The command line: what it prints, what it writes, how it ends."""

import json
import pickle

import numpy as np
import pytest
from PIL import Image
from test_backbones import Intruder

from inctrl_lite.cli import main
from inctrl_lite.demo import run_demo


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a command line: (exit code, standard output, standard error)."""

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["inctrl-lite", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return (ended.value.code or 0, *capsys.readouterr())

    return run


@pytest.fixture
def photos(tmp_path):
    """Four normal photos and two queries, one of them labelled anomalous."""
    rng = np.random.default_rng(0)
    for name in ("good/1", "good/2", "good/3", "good/4", "new/good/5", "new/odd/6"):
        path = tmp_path / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(path)
    return tmp_path


def score(photos, *more):
    folders = ("--normals", photos / "good", "--queries", photos / "new", "--out", photos / "out")
    return ("score", *folders, "--device", "cpu", "--quiet", *more)


@pytest.mark.parametrize("command", [(), ("demo",), ("score",), ("train",), ("evaluate",), ("info",)])
def test_every_command_explains_itself(run, command):
    code, out, _ = run(*command, "--help")
    assert code == 0 and "Usage" in out and "--help" in out


def test_wrong_usage_ends_with_2(run):
    assert run("score")[0] == 2
    assert run("score", "--shots", "0")[0] == 2
    assert run("no-such-command")[0] == 2


def test_score_writes_everything_and_speaks_json(run, photos):
    code, out, err = run(*score(photos, "--json"))
    answer = json.loads(out)
    assert code == 0 and err == ""
    assert answer["metrics"]["normal"] == answer["metrics"]["anomalous"] == 1
    assert {p.name for p in (photos / "out").iterdir() if p.name != ".lock"} == {
        "scores.csv",
        "scores.json",
        "heatmaps",
        "report.html",
    }
    assert answer["scores"][0]["name"] in (photos / "out" / "scores.csv").read_text()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--shots", "5"), "has 4 normal images|fewer|4 normal"),
        (("--model", "nowhere/at/all"), "neither a folder nor a Hub id .* lists the presets"),
        (("--normals", "missing-folder"), "missing-folder"),
        (("--device", "abacus"), "abacus"),
    ],
)
def test_wrong_input_ends_with_1_and_one_clear_line(run, photos, more, said):
    import re

    code, out, err = run(*score(photos, *more))
    assert code == 1 and out == ""
    assert err.startswith("error: ") and re.search(said, err) and "Traceback" not in err
    assert not (photos / "out").exists()


def test_an_output_that_cannot_be_written_is_named(run, photos):
    (photos / "out").write_text("a file stands where the folder should be")
    code, _, err = run(*score(photos))
    assert code == 1 and "cannot write" in err and "out" in err


def test_a_model_with_code_in_it_is_refused(run, photos):
    (photos / "evil.pyth").write_bytes(pickle.dumps(Intruder(photos / "broken-in")))
    code, _, err = run(*score(photos, "--model", photos / "evil.pyth"))
    assert code == 1 and "refused" in err and not (photos / "broken-in").exists()


def test_unknown_data_lists_the_worlds(run):
    code, _, err = run("evaluate", "--data", "mvtek")
    assert code == 1 and "mri-like" in err


def test_unknown_backbone_is_suggested(run, tmp_path):
    code, _, err = run(
        "train", "--data", "fabric", "--backbone", "ViT-B-16-plus-241", "--out", tmp_path / "run"
    )
    assert code == 1 and "ViT-B-16-plus-240" in err and not (tmp_path / "run").exists()


def test_version_and_info(run):
    import inctrl_lite

    assert run("--version")[1].strip() == inctrl_lite.__version__
    facts = json.loads(run("info", "--json")[1])
    assert facts["inctrl_lite"] == inctrl_lite.__version__ and "MB" in facts["backbones"]["photo"]


def test_the_demo_reports_every_world_it_is_given(tmp_path):
    drawn = ("fabric", "ct-like")
    demo = run_demo(tmp_path, shots=2, worlds=drawn, photographs=("flower",), images=3, device="cpu")
    expected = ["photographs-auxiliary", *drawn, "mean of the drawn worlds"]
    assert list(demo.by_world()["world"]) == expected
    page = demo.report.read_text()
    assert "fabric" in page and "data:image/jpeg" in page and "http" not in page
    assert (tmp_path / "demo.csv").exists()
    assert "K = 2" in demo.summary()


# --- fit, calibrate, score ---------------------------------------------------------------------------


@pytest.fixture
def fitted(run, photos):
    code, out, err = run(
        "fit",
        "--normals",
        photos / "good",
        "--out",
        photos / "a.inctrl",
        "--category",
        "metal nut",
        "--device",
        "cpu",
    )
    assert code == 0 and err == "" and "metal nut: 4 normal images, threshold 0." in out
    assert "expect about 1 false alarm in 5 normal images" in out
    return photos / "a.inctrl"


def test_fit_once_and_score_gives_what_score_gives(run, photos, fitted):
    queries = ("--queries", photos / "new", "--device", "cpu", "--quiet", "--json")
    one = json.loads(run("score", "--detector", fitted, *queries, "--out", photos / "one")[1])
    other = json.loads(run(*score(photos, "--category", "metal nut", "--json"))[1])
    assert one["scores"] == other["scores"] and one["metrics"] == other["metrics"]


@pytest.mark.filterwarnings("default")  # the command line prints them
def test_calibrate_with_normal_images_says_what_it_promises(run, photos, fitted):
    rng = np.random.default_rng(7)
    for i in range(9):
        path = photos / "more" / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(path)
    asked = ("calibrate", "--detector", fitted, "--normals", photos / "more", "--device", "cpu")
    code, out, err = run(*asked, "--false-alarms", "0.1")
    assert code == 0 and err == "" and "expect at most 10.00% false alarms" in out
    code, out, err = run(*asked, "--false-alarms", "0.01", "--json")
    answer = json.loads(out)
    assert "1.00% needs 99 images, and there are 9" in err
    assert answer["threshold"] == max(answer["normal_scores"]) and answer["expected_false_alarm_rate"] == 0.1
    answer = json.loads(
        run("score", "--detector", fitted, "--queries", photos / "new", "--quiet", "--json")[1]
    )
    assert answer["settings"]["expected_false_alarm_rate"] == 0.1


def test_calibrate_with_labels(run, photos, fitted):
    code, out, _ = run(
        "calibrate", "--detector", fitted, "--labelled", photos / "new", "--out", photos / "b.inctrl"
    )
    assert code == 0 and "best F1 on 2 labelled images" in out and (photos / "b.inctrl").exists()
    code, out, _ = run("calibrate", "--detector", fitted, "--labelled", photos / "new", "--recall", "1")
    assert code == 0 and "recall 1 on 2 labelled images" in out
    code, _, err = run("calibrate", "--detector", fitted, "--labelled", photos / "good")
    assert code == 1 and "so no labels" in err


def test_several_categories_in_one_file(run, photos):
    for name in ("cup", "nut"):
        for i in range(2):
            for folder in ("normal", "today"):
                path = photos / folder / name / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = np.random.default_rng([*path.as_posix().encode()]).integers(0, 256, (40, 40, 3))
                Image.fromarray(pixels.astype(np.uint8)).save(path)
    both = photos / "both.inctrl"
    code, out, _ = run(
        "fit", "--normals", photos / "normal", "--categories", "--out", both, "--device", "cpu"
    )
    assert code == 0 and "cup: 2 normal images" in out and "nut: 2 normal images" in out
    code, out, _ = run(
        "score", "--detector", both, "--queries", photos / "today", "--out", photos / "o", "--quiet"
    )
    assert code == 0 and out.count("2 images scored against 2 normal ones") == 2
    code, _, err = run("calibrate", "--detector", both, "--normals", photos / "good")
    assert code == 1 and "say which category" in err


def test_a_region_and_tiles_are_given_to_fit(run, photos):
    asked = ("fit", "--normals", photos / "good", "--out", photos / "a.inctrl", "--device", "cpu", "--json")
    code, out, _ = run(*asked, "--region", "5,5,35,35", "--tiles", "20")
    assert code == 0 and len(json.loads(out)["categories"]["object"]["normal_scores"]) == 4
    said = json.loads(
        run("score", "--detector", photos / "a.inctrl", "--queries", photos / "new", "--quiet", "--json")[1]
    )
    assert said["settings"]["tiles"] == [2, 2] and said["settings"]["region"] == "given"


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        (("score", "--queries", "new"), 2, "give either --normals"),
        (("score", "--queries", "new", "--normals", "good", "--detector", "x"), 2, "give either --normals"),
        (("score", "--queries", "new", "--normals", "good", "--watch"), 2, "--watch needs --detector"),
        (("score", "--queries", "new", "--detector", "no.inctrl"), 1, "no.inctrl is not there"),
        (("score", "--queries", "new", "--normals", "good", "--limits", "3"), 1, "give two numbers"),
        (("score", "--queries", "new", "--normals", "good", "--tiles", "big"), 1, "give auto, or the side"),
        (("score", "--queries", "new", "--normals", "good", "--maps", "gif"), 1, "choose npy, tiff, png"),
        (("fit", "--normals", "good", "--out", "good"), 1, "good is a folder: give the file to write"),
        (("fit", "--normals", "good", "--out", "a.inctrl", "--categories"), 1, "has no sub-folders"),
        (("fit", "--normals", "good", "--out", "a.inctrl", "--region", "no.png"), 1, "no image no.png"),
        (
            ("fit", "--normals", "good", "--out", "a.inctrl", "--region", "1,2,3,400"),
            1,
            "does not lie inside",
        ),
        (("fit", "--normals", "good", "--out", "a.inctrl", "--shots", "5"), 1, "4 normal images, fewer"),
        (("fit", "--normals", "good", "--out", "x" * 300), 1, "File name too long"),
        (("fit", "--normals", "x" * 300, "--out", "a.inctrl"), 1, "File name too long"),
        (("score", "--queries", "x" * 300, "--normals", "good"), 1, "File name too long"),
        (("calibrate", "--detector", "a.inctrl"), 2, "give either --normals or --labelled"),
        (("calibrate", "--detector", "a.inctrl", "--normals", "good"), 1, "a.inctrl is not there"),
    ],
)
def test_wrong_use_of_fit_calibrate_and_score_is_said(run, photos, monkeypatch, command, code, said):
    monkeypatch.chdir(photos)
    ended, out, err = run(*command)
    assert ended == code and said in " ".join(err.replace("│", " ").split()) and "Traceback" not in err
    assert not (photos / "a.inctrl").exists() and not (photos / "inctrl-scores").exists()


def test_watching_prints_a_line_of_json_for_each_image(run, photos, fitted, monkeypatch):
    import inctrl_lite.watch

    looks = []

    def sleep(seconds):
        looks.append(seconds)
        if len(looks) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(inctrl_lite.watch.time, "sleep", sleep)
    code, out, err = run("score", "--detector", fitted, "--queries", photos / "new", "--watch")
    lines = [json.loads(line) for line in out.splitlines()]
    assert code == 130 and "interrupted" in err
    assert [line["name"] for line in lines] == ["good/5.png", "odd/6.png"]

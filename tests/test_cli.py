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
    assert {p.name for p in (photos / "out").iterdir()} == {
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
        (("--model", "nowhere/at/all"), "neither a folder nor a Hub id"),
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

"""The catalogue and the command line in front of it."""

import json

import pytest
from layouts import LAYOUTS, brainmri, mvtec

from inctrl_lite.cli import _categories, main
from inctrl_lite.data.catalogue import CATALOGUE, MULTI_CLASS, ONE_VS_ALL, find_dataset
from inctrl_lite.errors import InctrlError


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a command line: (exit code, standard output, standard error)."""

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["inctrl-lite", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return (ended.value.code or 0, *capsys.readouterr())

    return run


def test_nine_data_sets_in_four_domains():
    assert set(CATALOGUE) == set(LAYOUTS)
    assert {info.domain for info in CATALOGUE.values()} == {"industrial", "surface", "medical", "semantic"}
    for name, info in CATALOGUE.items():
        assert name == info.name and list(info.categories) == sorted(info.categories)
        assert info.home.startswith("http") and info.licence and info.citation.endswith(".") and info.layout
        assert info.sha256 is None or (len(info.sha256) == 64 and info.archive)


def test_counts_agree_with_one_another():
    """75/25 splits: the test share is rounded up; VisA's categories add up to its total."""
    for name in ("elpv", "sdd", "aitex", "brainmri", "headct"):
        counts = CATALOGUE[name].counts[""]
        assert counts.normal == -(-(counts.train + counts.normal) // 4), name
    visa = CATALOGUE["visa"].counts[""]
    assert tuple(visa.by_category) == CATALOGUE["visa"].categories
    assert [sum(column) for column in zip(*visa.by_category.values(), strict=True)] == [962, 1200]
    assert CATALOGUE["mvtec"].counts[""].normal + CATALOGUE["mvtec"].counts[""].anomalous == 1725
    for name, size in (("mnist", 10_000), ("cifar10", 10_000)):
        single, several = (CATALOGUE[name].counts[protocol] for protocol in (ONE_VS_ALL, MULTI_CLASS))
        assert (single.normal, single.anomalous) == (size, 9 * size)
        assert several.normal + several.anomalous == size


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(
        InctrlError, match="no data set 'mvtek' in the catalogue. There are: mvtec, visa, elpv"
    ):
        find_dataset("mvtek")


def test_list_and_info_speak_text_and_json(run):
    code, out, _ = run("data", "list")
    assert code == 0 and [line.split()[0] for line in out.splitlines()[1:]] == list(CATALOGUE)
    assert json.loads(run("data", "list", "--json")[1])[0]["name"] == "mvtec"
    code, out, _ = run("data", "info", "brainmri")
    assert code == 0 and "73 training normals" in out and "not certain" in out and "kaggle" in out
    assert "not tried" in run("data", "info", "visa")[1]
    assert json.loads(run("data", "info", "visa", "--json")[1])["counts"][""]["by_category"]["pcb3"] == [
        101,
        100,
    ]
    assert "prepare" in run("data", "--help")[1]
    assert run("data", "info", "mvtek")[0] == 1
    assert run("data", "info")[0] == 2


def test_from_download_to_verified_manifest(run, tmp_path):
    brainmri(tmp_path / "brainmri" / "raw")
    code, out, err = run("data", "prepare", "brainmri", "--folder", tmp_path)
    assert code == 0 and err == "" and str(tmp_path / "brainmri" / "manifest.csv") in out
    code, out, _ = run("data", "verify", "brainmri", "--folder", tmp_path, "--quiet")
    assert code == 0 and "3 training normals, 1 normal and 2 anomalous" in out and "not certain" in out
    report = json.loads(run("data", "verify", tmp_path / "brainmri" / "manifest.csv", "--json", "-q")[1])
    assert report["is_sound"] and report["counts"] == {"brainmri": [3, 1, 2]}
    (tmp_path / "brainmri" / "raw" / "yes" / "Y1.jpg").unlink()
    code, out, _ = run("data", "verify", "brainmri", "--folder", tmp_path, "--quiet")
    assert code == 1 and "yes/Y1.jpg" in out and "NOT sound" in out


def test_what_cannot_be_fetched_is_told_and_ends_with_1(run, tmp_path):
    code, out, err = run("data", "download", "aitex", "--folder", tmp_path)
    assert code == 1 and out == ""
    for told in ("aitex.es/afid", "licence", "7z", str(tmp_path / "aitex" / "raw"), "data prepare aitex"):
        assert told in err
    assert list(tmp_path.iterdir()) == []


def test_data_options_take_a_manifest_or_its_folder(run, tmp_path):
    mvtec(tmp_path / "raw", ["bottle"])
    options = ("--folder", tmp_path, "--raw", tmp_path / "raw", "--only", "bottle")
    assert run("data", "prepare", "mvtec", *options)[0] == 0
    for data in (tmp_path / "mvtec" / "manifest.csv", tmp_path / "mvtec"):
        (category,) = _categories(str(data))
        assert (category.dataset, category.name, len(category.test)) == ("mvtec", "bottle", 4)
    with pytest.raises(InctrlError, match="nowhere.csv: there is none.*data prepare"):
        _categories(str(tmp_path / "nowhere.csv"))

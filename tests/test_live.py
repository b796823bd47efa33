"""The live page, in a browser: it fits and scores as the Python package does, with files and with a camera.

The page is written into a temporary folder, so that the site need not be built.
"""

import contextlib
import io
import json
import time
from pathlib import Path

import browser
import numpy as np
import pytest
from browser import AXE
from PIL import Image, ImageDraw

from inctrl_lite import AnomalyDetector, InctrlError
from inctrl_lite.data.images import load_image
from inctrl_lite.data.photographs import load_photographs
from inctrl_lite.npm import RUNTIME

BOOK = Path(__file__).parents[1] / "book"
VENDORED = BOOK / "vendor" / "onnxruntime"
PHONE = {"width": 390, "height": 844}
FRAMES = 120  # over which memory is watched

pytest.importorskip("onnx", reason="needs onnx: pip install 'inctrl-lite[export]'")
pytest.importorskip("onnxscript", reason="needs onnxscript: pip install 'inctrl-lite[export]'")
pytestmark = pytest.mark.skipif(
    not VENDORED.exists(), reason="the browser's runtime is not here: python book/vendor.py"
)

STATE = "window.live"  # what app.js exports, put there by `opened`
LOOKED = f"() => {STATE}.found !== null"


@pytest.fixture(scope="module")
def photo():
    return AnomalyDetector.from_pretrained("photo", device="cpu")


@pytest.fixture(scope="module")
def badge():
    return load_photographs("auxiliary", train=4, normal=2, anomalous=3, only=("badge",))[0]


@pytest.fixture(scope="module")
def pictures(badge, tmp_path_factory) -> dict[str, list[Path]]:
    """Files of normal pictures and of others; neither their size nor their shape is the input's."""
    folder = tmp_path_factory.mktemp("pictures")
    found = {"normal": badge.train, "check": badge.test}
    for kind, items in found.items():
        paths = []
        for i, item in enumerate(items):
            paths.append(folder / f"{kind}-{i}.png")
            load_image(item.image).resize((300, 256)).save(paths[-1])
        found[kind] = paths
    return found


@pytest.fixture(scope="module")
def written(photo, badge, tmp_path_factory) -> Path:
    """A folder with the page, with one example."""
    from inctrl_lite.web import Example, write_page

    root = tmp_path_factory.mktemp("site")
    normal = [(f"normal {i}", load_image(item.image)) for i, item in enumerate(badge.train)]
    check = [(item.defect, load_image(item.image)) for item in badge.test]
    write_page(photo, root / "live", VENDORED, examples=[Example("badge", normal, check)])
    (root / "index.html").write_text("<title>The site</title>")
    return root


@pytest.fixture(scope="module")
def site(written):
    with browser.served(written) as address:
        yield address


@pytest.fixture(scope="module")
def video(badge, tmp_path_factory) -> Path:
    """Frames for the browser's fake camera: two seconds of a normal thing, two of it with a red patch."""
    picture = load_image(badge.train[0].image).resize((240, 240))
    noise, frames = np.random.default_rng(0), []
    for i in range(40):
        frame = Image.new("RGB", (320, 240), (90, 90, 90))
        frame.paste(picture, (40 + int(noise.integers(-1, 2)), int(noise.integers(-1, 2))))
        pixels = np.asarray(frame) + noise.normal(0, 4, (240, 320, 3))
        frame = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
        if i >= 20:
            ImageDraw.Draw(frame).rectangle((140, 100, 190, 150), fill=(230, 10, 10))
        data = io.BytesIO()
        frame.save(data, "JPEG", quality=95, subsampling=0)
        frames.append(data.getvalue())
    path = tmp_path_factory.mktemp("video") / "camera.mjpeg"
    path.write_bytes(b"".join(frames))
    return path


@pytest.fixture(scope="module")
def chromium(video):
    """With a fake camera that a page may use without asking."""
    camera = ("--use-fake-device-for-media-stream", f"--use-file-for-fake-video-capture={video}")
    more = ("--use-fake-ui-for-media-stream", "--js-flags=--expose-gc", "--enable-precise-memory-info")
    with browser.chromium(*camera, *more) as found:
        yield found


@contextlib.contextmanager
def opened(
    chromium, site: str, script: str = "", address: str = "live/index.html", problems=False, **options
):
    """The page, ready. Nothing may go wrong in it, and it may ask no other host.

    problems: it may show a message.
    """
    context = chromium.new_context(**{"viewport": {"width": 1280, "height": 900}} | options)
    context.set_default_timeout(60_000)  # on a busy machine a page takes its time
    page, wrong = context.new_page(), []
    page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
    page.on("console", lambda said: said.type == "error" and wrong.append(said.text))
    page.on("response", lambda r: r.status >= 400 and wrong.append(f"{r.status}: {r.url}"))
    page.on("request", lambda r: r.url.startswith((site, "data:", "blob:")) or wrong.append(f"asks {r.url}"))
    if script:
        page.add_init_script(script)
    page.goto(site + address)
    page.locator("#choose").wait_for()
    page.evaluate("async () => { window.live = (await import(new URL('app.js', location.href))).state; }")
    yield page
    if not problems:
        wrong += [page.text_content("#problem")] if page.text_content("#problem") else []
    context.close()
    assert not wrong


def normal_count(page, count: int) -> None:
    """Wait until a detector was fitted with so many normal pictures."""
    page.wait_for_function(f"() => {STATE}.detector?.normalScores.length === {count if count > 1 else 0}")


def show(page, pictures: dict[str, list[Path]]) -> None:
    """Choose files, and give the normal pictures and the others."""
    page.click("#use-files")
    page.set_input_files("#normal-files", pictures["normal"])
    page.set_input_files("#check-files", pictures["check"])
    normal_count(page, len(pictures["normal"]))


def answers(page, count: int) -> list[dict]:
    """Score, map and verdict of each picture to look at."""
    found = []
    for i in range(count):
        page.locator("#checks button").nth(i).click()
        shown = f"() => {{ const s = {STATE}; return s.found?.frame === s.checks[{i}].frame; }}"
        page.wait_for_function(shown)
        answer = page.evaluate(
            f"() => {{ const {{ score, map }} = {STATE}.found; return {{ score, map: [...map] }}; }}"
        )
        found.append(answer | {"verdict": page.inner_text("#verdict")})
    return found


def test_the_page_agrees_with_python(chromium, site, photo, pictures):
    photo.fit(pictures["normal"], "badge")
    fitted, wanted = photo.categories["badge"], photo.predict(pictures["check"], "badge")
    with opened(chromium, site) as page:
        show(page, pictures)
        detector = page.evaluate(
            f"() => {{ const d = {STATE}.detector; return [d.normalScores, d.threshold, d.limits]; }}"
        )
        found = answers(page, len(wanted))
    np.testing.assert_allclose(detector[0], fitted.normal_scores, atol=2e-3)
    assert detector[1] == pytest.approx(fitted.threshold, abs=2e-3)
    np.testing.assert_allclose(detector[2], fitted.limits, atol=1e-3)
    for ours, theirs in zip(found, wanted, strict=True):
        np.testing.assert_allclose(ours["map"], theirs.patch_map.ravel(), atol=1e-3)
        assert ours["score"] == pytest.approx(theirs.score, abs=2e-3)
        assert ours["verdict"].startswith("Different" if theirs.is_anomalous else "Like")
    assert np.argsort([f["score"] for f in found]).tolist() == np.argsort(wanted.scores).tolist()


RED = """() => {
    const view = document.getElementById("view");
    const [red, green] = view.getContext("2d").getImageData(165, 125, 1, 1).data;
    return red > 180 && green < 90;
}"""


def test_pictures_wait_for_a_network_that_comes_slowly(chromium, site):
    with opened(chromium, site) as page:
        page.context.route("**/encoder.onnx", lambda route: (time.sleep(2), route.continue_()))
        page.click("#use-examples")
        page.locator("#strip li").nth(3).wait_for()  # the pictures are here, the network is not
        assert page.evaluate(f"() => {STATE}.detector") is None
        normal_count(page, 4)
        page.wait_for_function(f"() => {STATE}.found !== null")


def seen(page, red: bool, verdict: str) -> None:
    """Wait for a frame with or without the red patch, of which this is said."""
    said = f"document.getElementById('verdict').textContent.startsWith('{verdict}')"
    page.wait_for_function(f"() => {'' if red else '!'}({RED})() && {said}")


def test_a_camera_is_taught_and_finds_the_patch(chromium, site):
    with opened(chromium, site) as page:
        page.click("#use-camera")
        page.locator("#opacity").fill("0")  # so that the picture itself can be looked at
        page.wait_for_function("() => document.getElementById('view').width === 320")
        while page.locator("#strip li").count() < 6:
            page.click("#pause")
            page.wait_for_timeout(300)
            if not page.evaluate(RED):
                page.click("#take")
            page.click("#pause")
            page.wait_for_timeout(300)
        normal_count(page, 6)
        seen(page, True, "Different")
        seen(page, False, "Like")
        page.click("#pause")
        frames = page.evaluate(f"() => {STATE}.looked")
        page.wait_for_timeout(800)
        assert page.evaluate(f"() => {STATE}.looked") - frames <= 1
        page.locator("#strip button").first.click()
        normal_count(page, 5)
        page.locator("#meaning", has_text="about 1 false alarm in 6 new normal pictures").wait_for()


def test_a_held_button_goes_on_when_the_page_moves(chromium, site):
    with opened(chromium, site) as page:
        page.click("#use-camera")
        page.wait_for_function("() => document.getElementById('view').width === 320")
        page.locator("#take").hover()
        page.mouse.down()
        page.evaluate("() => { document.body.style.paddingTop = '300px'; }")
        page.wait_for_function(f"() => {STATE}.normals.length >= 3")
        page.mouse.up()
        count = page.evaluate(f"() => {STATE}.normals.length")
        page.wait_for_timeout(1000)
        assert page.evaluate(f"() => {STATE}.normals.length") <= count + 1  # the click itself
        page.mouse.move(0, 0)
        page.locator("#take").hover()
        page.mouse.down()
        page.wait_for_function(f"() => {STATE}.normals.length === 8")
        page.wait_for_timeout(1000)
        assert not page.locator("#problem").is_visible()
        page.mouse.up()


def test_memory_stays_flat(chromium, site):
    used = "() => { gc(); gc(); return performance.memory.usedJSHeapSize; }"
    with opened(chromium, site) as page:
        page.click("#use-camera")
        page.wait_for_function("() => document.getElementById('view').width === 320")
        page.locator("#take").hover()
        page.mouse.down()  # held, it takes one picture after the other
        page.wait_for_function(f"() => {STATE}.normals.length >= 2")
        page.mouse.up()
        page.wait_for_function(f"() => {STATE}.detector?.normalScores.length >= 2")

        def after(frames: int) -> int:
            wanted = page.evaluate(f"() => {STATE}.looked") + frames
            page.wait_for_function(f"() => {STATE}.looked >= {wanted}")
            return page.evaluate(used)

        start = after(20)
        assert after(FRAMES) < start + 3e6  # one kept frame would be 0.3 MB


def test_a_saved_detector_goes_to_python_and_back(chromium, site, photo, pictures, tmp_path):
    with opened(chromium, site, accept_downloads=True) as page:
        show(page, pictures)
        page.locator("#category").fill("my badge")
        page.locator("#part").fill("80")
        page.locator("#part").dispatch_event("change")
        page.locator("#view").click(position={"x": 40, "y": 40})
        page.wait_for_timeout(300)
        normal_count(page, 4)
        page.wait_for_function(f"() => {STATE}.normals.every((normal) => normal.features)")
        page.wait_for_timeout(500)
        ours = answers(page, len(pictures["check"]))
        with page.expect_download() as download:
            page.click("#save-detector")
        path = tmp_path / download.value.suggested_filename
        download.value.save_as(path)
        with page.expect_download() as download:
            page.click("#save-picture")
        with Image.open(download.value.path()) as saved:
            assert saved.size == (300, 256)
    assert path.name == "my badge.inctrl"
    loaded = AnomalyDetector.load(path, backbone=photo.backbone)
    fitted = loaded.categories["my badge"]
    assert fitted.shots == 4 and fitted.view.region.box((300, 256)) == (0, 0, 205, 205)
    wanted = loaded.predict(pictures["check"])
    for answer, prediction in zip(ours, wanted, strict=True):
        assert answer["score"] == pytest.approx(prediction.score, abs=2e-3)
        np.testing.assert_allclose(answer["map"], prediction.patch_map.ravel(), atol=1e-3)

    again = loaded.save(tmp_path / "from-python.inctrl")
    damaged = tmp_path / "damaged.inctrl"
    damaged.write_bytes(again.read_bytes()[:5000])
    tiny = AnomalyDetector.from_pretrained("tiny", device="cpu")
    other = tiny.fit(pictures["normal"][:2], "x").save(tmp_path / "tiny.inctrl")
    with opened(chromium, site, problems=True) as page:
        page.click("#use-files")
        page.set_input_files("#check-files", pictures["check"])
        page.set_input_files("#load-detector", again)
        page.wait_for_function(
            "() => document.getElementById('fitted-from').textContent.includes('my badge')"
        )
        for answer, prediction in zip(answers(page, len(wanted)), wanted, strict=True):
            assert answer["score"] == pytest.approx(prediction.score, abs=2e-3)
        for wrong, reason in (
            (damaged, "This is no detector file, or it is damaged"),
            (other, "It was fitted with another network"),
            (pictures["check"][0], "This is no detector file"),
        ):
            page.set_input_files("#load-detector", wrong)
            page.locator("#problem", has_text=f"{wrong.name}: ").filter(has_text=reason).wait_for()


def test_a_refused_camera_and_unreadable_files_are_said(chromium, site, tmp_path):
    denied = (
        "navigator.mediaDevices.getUserMedia = async () => { throw new DOMException('', 'NotAllowedError') }"
    )
    text = tmp_path / "text.png"
    text.write_text("no picture")
    with opened(chromium, site, denied, problems=True) as page:
        page.click("#use-camera")
        page.locator("#problem", has_text="did not give this page the camera").wait_for()
        page.locator("#normal-files").wait_for(state="attached")  # the other way is open
        page.set_input_files("#normal-files", text)
        page.locator("#problem", has_text="text.png cannot be read as a picture").wait_for()


def test_without_webassembly_the_page_says_so(chromium, site):
    with opened(chromium, site, "delete window.WebAssembly", problems=True) as page:
        page.click("#use-files")
        page.locator("#problem", has_text="This browser has no WebAssembly").wait_for()


def test_sizes_are_said_before_anything_is_loaded(chromium, site, written):
    about = json.loads((written / "live" / "page.json").read_text())
    asked = []
    with opened(chromium, site) as page:
        page.on("request", lambda request: asked.append(request.url))
        for name in ("encoder", "wasm"):
            assert f"({about['files'][name]['bytes'] / 1e6:.0f} MB)" in page.inner_text("#sizes")
            size = (written / "live" / about["files"][name]["url"]).stat().st_size
            assert about["files"][name]["bytes"] == size
        assert not asked
        assert page.inner_text("#code-match").startswith("function match") is False  # folded
        page.click("#how summary")
        for name in ("encode", "match", "score"):
            assert f"function {name}(" in page.inner_text(f"#code-{name}")


def test_keyboard_alone_is_enough(chromium, site):
    """Tab and keys: our photographs, the second one to look at, more sensitivity, one normal picture less."""

    def reach(selector: str) -> None:
        for _ in range(60):
            page.keyboard.press("Tab")
            if page.evaluate(f"document.activeElement.matches({json.dumps(selector)})"):
                style = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
                assert style != "none", selector
                return
        raise AssertionError(f"{selector} cannot be reached")

    with opened(chromium, site) as page:
        reach("#use-examples")
        page.keyboard.press("Enter")
        normal_count(page, 4)
        reach("#strip button")
        page.keyboard.press("Enter")
        normal_count(page, 3)
        page.wait_for_function(LOOKED)
        reach("#checks button[aria-pressed='false']")
        page.keyboard.press("Enter")
        page.wait_for_function(f"() => {{ const s = {STATE}; return s.shown === s.checks[1].frame }}")
        reach("#sensitivity")
        page.keyboard.press("ArrowRight")
        assert page.inner_text("#sensitivity-text") == "+1"
        assert "how often a new normal picture will is not known" in page.inner_text("#meaning")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_is_accessible_and_fits_a_phone(chromium, site, theme):
    with opened(chromium, site, color_scheme=theme, viewport=PHONE, has_touch=True) as page:
        page.tap("#use-examples")
        normal_count(page, 4)
        page.wait_for_function(LOOKED)
        page.tap("#how summary")
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        small = page.evaluate("""() => [...document.querySelectorAll("button, .file, select")]
            .filter((e) => e.checkVisibility() && e.getBoundingClientRect().height < 28).length""")
        assert small == 0
        page.evaluate(AXE.read_text(encoding="utf-8"))
        found = page.evaluate("axe.run({ preload: false })")["violations"]
        assert not [f"{v['id']}: {n['html'][:200]}" for v in found for n in v["nodes"][:3]]


def test_a_fitted_detector_is_exported_with_the_page(chromium, photo, pictures, tmp_path):
    from inctrl_lite.web import export_web

    photo.fit(pictures["normal"], "badge")
    with pytest.raises(InctrlError, match="does not hold ort.wasm.min.mjs"):
        export_web(photo, tmp_path / "page", "badge", runtime=tmp_path)
    assert not (tmp_path / "page").exists()
    folder = export_web(photo, tmp_path / "page", "badge", runtime=VENDORED)
    with pytest.raises(InctrlError, match="is not empty"):
        export_web(photo, folder, "badge", runtime=VENDORED)
    wanted = photo.predict(pictures["check"], "badge")
    with browser.served(folder) as address, opened(chromium, address, address="") as page:
        page.set_input_files("#check-files", pictures["check"])
        found = answers(page, len(wanted))
        assert '"badge", fitted with 4 normal pictures' in page.inner_text("#fitted-from")
    for answer, prediction in zip(found, wanted, strict=True):
        assert answer["score"] == pytest.approx(prediction.score, abs=2e-3)


def test_a_detector_that_the_page_cannot_use_is_refused(photo, pictures, tmp_path):
    from inctrl_lite.web import export_web

    tiny = AnomalyDetector.from_pretrained("tiny", device="cpu").fit(pictures["normal"][:2], "x")
    with pytest.raises(InctrlError, match="can only use a detector like 'photo'"):
        export_web(tiny, tmp_path / "page", runtime=VENDORED)
    photo.fit(pictures["normal"][:2], "tiles", tiles=128)
    with pytest.raises(InctrlError, match="has tiles"):
        export_web(photo, tmp_path / "page", "tiles", runtime=VENDORED)
    del photo.categories["tiles"]
    assert not (tmp_path / "page").exists()


def test_vendored_files_are_those_that_the_page_takes():
    assert {path.name for path in VENDORED.iterdir()} == {Path(name).name for name in RUNTIME[2]}


def test_the_page_is_short():
    """A reader can read all of it."""
    live = Path(__file__).parents[1] / "inctrl_lite" / "live"
    lines = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in live.iterdir()}
    assert sum(count for name, count in lines.items() if name.endswith(".js")) < 1000, lines


def test_the_smaller_weights_cost_no_more_than_half_a_point():
    """Recorded by benchmarks/web_weights.py."""
    from inctrl_lite.web import WEIGHTS

    recorded = BOOK.parent / "benchmarks" / "results" / "web_weights.json"
    if not recorded.exists():
        pytest.skip("needs the repository's benchmarks/ folder")
    for name, found in json.loads(recorded.read_text(encoding="utf-8"))["auroc"].items():
        assert abs(found[WEIGHTS] - found["float32"]) < 0.005, name

// The page: what the reader chooses, takes, sees and saves. The method is in method.js, files in file.js.

import { FileError, moved, read, write } from "./file.js";
import { encode, fit, match, score, shrink } from "./method.js";

const MOST = 8; // normal pictures
const HOLD_MS = 450; // between two normal pictures while the button is held
const $ = (id) => document.getElementById(id);
const WHOLE = 105; // of the slider: the whole picture, not a square

export const state = {
  source: null, // "camera" or "pictures"
  normals: [], // { name, frame, input, features, thumbnail }
  checks: [], // { name, frame }
  shown: null, drawn: null, // the frame that is looked at, and the one that the reader sees
  detector: null, found: null, paused: false, changed: true,
  centre: [0.5, 0.5], fixed: null, // a region that came with a file
  looked: 0, // pictures so far
};
let model = null, worker = null, ready = null, video = null, times = [];

// --- load --------------------------------------------------------------------------------------------

try { // what the reader chose on the site around this page
  document.documentElement.dataset.theme = localStorage.getItem("theme") ?? "";
} catch { /* a browser that stores nothing follows the system */ }
const PAGE = await (await fetch("page.json")).json();
const megabytes = (bytes) => `${(bytes / 1e6).toFixed(0)} MB`;
const total = PAGE.files.encoder.bytes + PAGE.files.wasm.bytes;

function prepare() {
  const tensor = (name) => new Float32Array(PAGE.tensors[name].values);
  model = {
    page: PAGE, config: PAGE.config, grid: PAGE.map_grid, stageGrids: PAGE.stage_grids,
    middleStage: Math.floor(PAGE.stage_grids.length / 2),
    direction: tensor("head.direction"), offset: tensor("head.offset")[0],
    levelOfOne: tensor("head.level")[0],
  };
  const [network, program] = [PAGE.files.encoder, PAGE.files.wasm].map(({ bytes }) => megabytes(bytes));
  $("sizes").textContent = `Each choice loads the network (${network}) and the program that runs it (${program}), `
    + "once, from this site. You can take pictures meanwhile.";
  $("use-examples").hidden = !PAGE.examples.length;
  for (const [i, { name }] of PAGE.examples.entries()) $("examples").append(new Option(name, i));
  $("code-encode").textContent = encode; // a function as text is its source
  $("code-match").textContent = match;
  $("code-score").textContent = score;
  $("back").hidden = Boolean(PAGE.fitted);
}

// The worker's answers, by number of the question.
const waiting = new Map();
let asked = 0, loaded = 0;

function ask(question) {
  return new Promise((resolve, reject) => {
    waiting.set(++asked, { resolve, reject });
    worker.postMessage({ id: asked, ...question });
  });
}

function start() {
  if (ready) return;
  if (typeof WebAssembly === "undefined") {
    problem("This browser has no WebAssembly, which runs the network. Use a current Firefox, Chrome, Edge or "
      + "Safari, or switch it on.");
    return;
  }
  $("loading").hidden = false;
  worker = new Worker("worker.js", { type: "module" });
  worker.onerror = () => problem("The network could not be started in this browser. Use a current one.");
  worker.onmessage = ({ data }) => {
    if (data.loaded) return progress((loaded += data.loaded) / total);
    const { resolve, reject } = waiting.get(data.id);
    waiting.delete(data.id);
    return data.error ? reject(new Error(data.error)) : resolve(data.features);
  };
  const threads = globalThis.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency) : 1;
  const absolute = ([name, { url }]) => [name, { url: new URL(url, location.href).href }];
  const files = Object.fromEntries(Object.entries(PAGE.files).map(absolute));
  ready = ask({ load: { files, threads, grids: PAGE.stage_grids, size: PAGE.size } });
  ready.then(() => { $("loading").hidden = true; refit(); }, (error) => {
    problem(`The network could not be loaded (${error.message}). Load the page again when you are online.`);
  });
}

function progress(share) {
  $("progress").value = share;
  const loading = `Loading: ${Math.round(share * 100)} % of ${megabytes(total)}`;
  $("progress-text").textContent = share < 1 ? loading : "Warming up";
}

function problem(text) {
  $("problem").textContent = text ?? "";
  $("problem").hidden = !text;
}

// --- where pictures come from ------------------------------------------------------------------------

const CAMERA = { video: { facingMode: "environment", width: { ideal: 640 }, height: { ideal: 480 } } };

async function useCamera() {
  if (state.source === "camera") return undefined;
  choose("camera");
  const devices = navigator.mediaDevices;
  if (!devices) return refuse("A camera is only for pages at https:// addresses. Choose picture files.");
  try {
    const srcObject = await devices.getUserMedia(CAMERA);
    video = Object.assign(document.createElement("video"), { srcObject, muted: true, playsInline: true });
    await video.play();
    state.paused = false;
  } catch (error) {
    const missing = ["NotFoundError", "OverconstrainedError"].includes(error.name);
    refuse(missing ? "No camera was found. Connect one, or choose picture files."
      : error.name === "NotAllowedError"
        ? "The browser did not give this page the camera. Allow it in the browser's address bar and try again, "
          + "or choose picture files."
        : "The camera cannot be used now; another program may have it. Close that program, or choose files.");
  }
  return undefined;
}

function refuse(text) {
  choose("pictures");
  problem(text);
}

function choose(source) {
  problem();
  if (video && source !== "camera") {
    for (const track of video.srcObject.getTracks()) track.stop();
    video = null;
  }
  state.source = source;
  const first = source === "camera" ? null : state.checks[0]?.frame ?? null;
  Object.assign(state, { shown: first, drawn: null, found: null });
  start();
  $("watch").hidden = false;
  press(source === "camera" ? "use-camera" : "use-files");
  $("take").hidden = $("pause").hidden = source !== "camera";
  $("check-zone").hidden = source === "camera";
  $("example-line").hidden = true;
  $("advice").textContent = source === "camera"
    ? "Put a good one before the camera. Take about four pictures, or hold the button. Move the thing a little "
      + "between them, keep the light and the background: whatever changes later is called different."
    : "Add about four pictures of good ones, taken from the same place in the same light. Whatever differs from "
      + "all of them is called different.";
  state.changed = true;
  draw();
  $("watch").scrollIntoView();
}

function press(button) {
  for (const id of ["use-camera", "use-files", "use-examples"]) {
    $(id).setAttribute("aria-pressed", String(id === button));
  }
}

let turns = 0;
async function useExample(which) {
  choose("pictures");
  press("use-examples");
  $("example-line").hidden = false;
  $("advice").textContent = "These are cut from photographs that come with scikit-image; a program blended the "
    + "defects in. Some are found, one is missed. Remove a normal picture, or add one, and see what changes.";
  const example = PAGE.examples[which], turn = ++turns;
  const fetched = async ({ name, file }) => ({ name, frame: await decode(await (await fetch(file)).blob()) });
  const all = (pictures) => Promise.all(pictures.map(fetched));
  const [normals, checks] = await Promise.all([all(example.normal), all(example.check)]);
  if (turn !== turns) return; // the reader has chosen another one meanwhile
  anew();
  $("category").value = example.category;
  Object.assign(state, { normals, checks, shown: checks[0].frame });
  listNormals();
  listChecks();
  await refit();
}

// A file as pixels, upright, transparent parts white.
async function decode(blob) {
  const bitmap = await createImageBitmap(blob, { imageOrientation: "from-image" });
  const frame = pixels(bitmap, bitmap.width, bitmap.height);
  bitmap.close();
  return frame;
}

let drawer = null; // one canvas for all pictures
function pixels(source, width, height) {
  drawer ??= document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  Object.assign(drawer.canvas, { width, height });
  drawer.fillStyle = "white";
  drawer.fillRect(0, 0, width, height);
  drawer.drawImage(source, 0, 0, width, height);
  return drawer.getImageData(0, 0, width, height);
}

async function decoded(files, take) {
  problem();
  for (const file of files) {
    try {
      await take(file.name, await decode(file.blob ?? file));
    } catch {
      problem(`${file.name} cannot be read as a picture. Use JPEG, PNG or WebP.`);
    }
  }
}

const addChecks = (files) => decoded(files, (name, frame) => {
  state.checks.push({ name, frame });
  if (!state.shown) state.shown = frame;
  state.changed = true;
  listChecks();
});

const addNormals = (files) => decoded(files, addNormal);

async function addNormal(name, frame) {
  if (state.fixed !== null || state.normals.length >= MOST) {
    problem(state.fixed !== null
      ? "A loaded detector cannot be added to. Start anew to show other normal pictures."
      : `${MOST} normal pictures are enough. Remove one to add another.`);
    return;
  }
  state.normals.push({ name, frame });
  listNormals();
  if (ready) await refit();
}

// --- fit and look ------------------------------------------------------------------------------------

// The part of a picture that counts, in pixels: View.boxes in Python.
function box({ width, height }) {
  const { shares } = region({ width, height });
  return [Math.floor(shares[0] * width + 1e-6), Math.floor(shares[1] * height + 1e-6),
    Math.ceil(shares[2] * width - 1e-6), Math.ceil(shares[3] * height - 1e-6)];
}

// The chosen square on a grid of at most 1024 cells, as Python keeps it, and as shares of the picture.
function region({ width, height }) {
  if (state.fixed) return { shares: state.fixed };
  const part = Number($("part").value);
  if (state.fixed !== null || part === WHOLE) return { shares: [0, 0, 1, 1] };
  const scale = Math.min(1, 1024 / Math.max(width, height));
  const columns = Math.round(width * scale), rows = Math.round(height * scale);
  const side = Math.max(1, Math.round((Math.min(columns, rows) * part) / 100));
  const left = Math.round(Math.min(Math.max(state.centre[0] * columns - side / 2, 0), columns - side));
  const top = Math.round(Math.min(Math.max(state.centre[1] * rows - side / 2, 0), rows - side));
  const mask = new Uint8Array(columns * rows);
  for (let y = top; y < top + side; y++) mask.fill(1, y * columns + left, y * columns + left + side);
  const shares = [left / columns, top / rows, (left + side) / columns, (top + side) / rows];
  return { width: columns, height: rows, mask, shares };
}

let fitting = Promise.resolve();
function refit(encodeAgain = false) {
  if (encodeAgain) for (const normal of state.normals) normal.features = null;
  fitting = fitting.then(async () => {
    for (const normal of [...state.normals]) {
      if (normal.features) continue;
      normal.input = shrink(normal.frame, box(normal.frame), PAGE.size);
      normal.features = await ask({ picture: normal.input });
    }
    const normals = state.normals.filter((normal) => normal.features);
    const features = normals.map((normal) => normal.features);
    if (state.fixed === null) state.detector = normals.length ? fit(features, model) : null;
    Object.assign(state, { found: null, changed: true }); // what was found belongs to the last detector
  }).catch((error) => { // a network that could not be loaded was named already
    if ($("problem").hidden) problem(`The pictures could not be compared (${error.message}).`);
  });
  return fitting;
}

// One picture after the other, as fast as they are scored.
async function look() {
  for (;;) {
    const idle = state.paused || document.hidden || !video;
    await new Promise(idle ? (done) => setTimeout(done, 50) : requestAnimationFrame);
    const live = state.source === "camera" && video && !state.paused;
    if (live && video.videoWidth) state.shown = pixels(video, video.videoWidth, video.videoHeight);
    if (!state.shown || (!live && !state.changed)) continue;
    state.changed = false;
    const { shown: frame, detector } = state;
    let found = null;
    if (detector) {
      const begun = performance.now();
      try {
        found = score(await ask({ picture: shrink(frame, box(frame), PAGE.size) }), detector);
      } catch (error) {
        problem(`The picture could not be scored (${error.message}).`);
      }
      times = [...times.slice(-9), performance.now() - begun];
    }
    if (frame !== state.shown || detector !== state.detector) continue; // the reader has gone on
    state.found = found && { ...found, frame };
    state.looked += 1;
    draw();
    tell();
  }
}

// --- show --------------------------------------------------------------------------------------------

// matplotlib's "inferno" at nine places.
const INFERNO = [
  [0, 0, 4], [31, 12, 72], [85, 15, 109], [136, 34, 106], [186, 54, 85],
  [227, 89, 51], [249, 140, 10], [249, 201, 50], [252, 255, 164],
];

function colour(value) {
  const at = value * 8, low = Math.min(7, Math.floor(at));
  return INFERNO[low].map((from, c) => from + (INFERNO[low + 1][c] - from) * (at - low));
}

// The picture in grey, the map over it: viz.overlay.
function draw() {
  const canvas = $("view"), context = canvas.getContext("2d"), frame = state.shown, found = state.found;
  if (!frame) return context.clearRect(0, 0, canvas.width, canvas.height);
  const { width, height } = frame;
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  context.putImageData(frame, 0, 0);
  state.drawn = frame;
  const [left, top, right, bottom] = box(frame);
  const opacity = Number($("opacity").value) / 100;
  if (found?.frame === frame && opacity) {
    const { map } = found, [rows, columns] = model.grid, [low, high] = state.detector.limits;
    const small = new ImageData(columns, rows);
    map.forEach((value, n) => {
      const share = Math.min(1, Math.max(0, (value - low) / (high - low)));
      small.data.set([...colour(share), 255 * opacity * (0.15 + 0.85 * share)], n * 4);
    });
    drawer ??= document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    Object.assign(drawer.canvas, { width: columns, height: rows });
    drawer.putImageData(small, 0, 0);
    context.save();
    context.filter = "grayscale(1)";
    context.drawImage(canvas, left, top, right - left, bottom - top, left, top, right - left, bottom - top);
    context.filter = "none";
    context.imageSmoothingQuality = "high";
    context.drawImage(drawer.canvas, left, top, right - left, bottom - top);
    context.restore();
  }
  if (right - left < frame.width || bottom - top < frame.height) {
    context.lineWidth = Math.max(2, frame.width / 200);
    context.strokeStyle = "#fff";
    context.setLineDash([3 * context.lineWidth, 2 * context.lineWidth]);
    context.strokeRect(left, top, right - left, bottom - top);
  }
  return undefined;
}

const percent = (value) => `${(value * 100).toFixed(1)}%`;
const say = (id, text) => { if ($(id).textContent !== text) $(id).textContent = text; };

// The verdict, the scale, and what the threshold is worth.
function tell() {
  const { detector, found } = state, steps = Number($("sensitivity").value);
  const threshold = detector ? moved(detector.threshold, steps) : null;
  for (const id of ["save-detector"]) $(id).disabled = !detector || state.fixed !== null;
  $("save-picture").disabled = !state.shown;
  say("sensitivity-text", steps ? `${steps > 0 ? "+" : "-"}${Math.abs(steps)}` : "as fitted");
  $("marker").hidden = !found;
  $("line").hidden = threshold === null;
  if (found) $("marker").style.left = percent(found.score);
  if (threshold !== null) $("line").style.left = percent(threshold);
  const strange = found && threshold !== null ? found.score > threshold : null;
  $("verdict").className = strange === null ? "" : strange ? "bad" : "good";
  const waits = !detector && state.normals.length ? "Waiting for the network." : "No normal picture yet.";
  say("verdict", !detector ? waits : !found ? "Nothing to look at yet."
    : strange === null ? "Show a second normal picture: one alone gives no threshold."
      : strange ? "Different from the normal ones" : "Like the normal ones");
  const scores = detector?.normalScores ?? [], above = scores.filter((value) => value > threshold).length;
  const n = scores.length;
  const among = `Dots: the ${n} normal pictures, each compared with the others. Dashed line: the threshold. `;
  const worth = !detector || threshold === null ? ""
    : steps ? `You moved the threshold: ${above} of the ${n} normal pictures lie above it, and how often a new `
      + "normal picture will is not known."
      : detector.expectedRate ? `Expect about 1 false alarm in ${Math.round(1 / detector.expectedRate)} new normal `
        + "pictures taken in the same way."
        : `The threshold: ${detector.thresholdSource}.`;
  say("meaning", (n ? among : "") + worth);
  const seconds = times.reduce((sum, time) => sum + time, 0) / times.length / 1000;
  const speed = `${Math.round(seconds * 1000)} ms a picture, ${(1 / seconds).toFixed(1)} pictures a second`;
  say("speed", found ? `Score ${found.score.toFixed(3)}. ${speed}.` : "");
  const line = threshold === null ? "" : `, threshold ${threshold.toFixed(2)}`;
  $("scale").setAttribute("aria-label", `Score ${found ? `${found.score.toFixed(2)} ` : ""}on a scale from 0 to 1${line}`);
  const seen = state.shown ? "The picture" : "Nothing to look at yet";
  $("view").setAttribute("aria-label", found ? "The picture with its map over it" : seen);
  const key = scores.join();
  if ($("scale").dataset.key !== key) {
    $("scale").dataset.key = key;
    for (const old of $("scale").querySelectorAll(".dot")) old.remove();
    for (const value of scores) {
      const dot = Object.assign(document.createElement("div"), { className: "dot" });
      dot.style.left = percent(value);
      $("scale").append(dot);
    }
  }
}

function thumbnail(frame) {
  const side = 176, canvas = Object.assign(document.createElement("canvas"), { width: side, height: side });
  const whole = Object.assign(document.createElement("canvas"), { width: frame.width, height: frame.height });
  whole.getContext("2d").putImageData(frame, 0, 0);
  const edge = Math.min(frame.width, frame.height);
  const [left, top] = [(frame.width - edge) / 2, (frame.height - edge) / 2];
  canvas.getContext("2d").drawImage(whole, left, top, edge, edge, 0, 0, side, side);
  return canvas;
}

function listNormals() {
  $("strip").replaceChildren(...state.normals.map((normal) => {
    const item = document.createElement("li"), remove = document.createElement("button");
    remove.textContent = "Remove";
    remove.setAttribute("aria-label", `Remove ${normal.name}`);
    remove.onclick = () => {
      const at = state.normals.indexOf(normal);
      state.normals.splice(at, 1);
      listNormals();
      ($("strip").querySelectorAll("button")[Math.min(at, state.normals.length - 1)] ?? $("take")).focus();
      refit();
    };
    item.append((normal.thumbnail ??= thumbnail(normal.frame)), remove);
    return item;
  }));
  const count = state.normals.length;
  say("count", count ? `(${count} of at most ${MOST}; 4 are a good number)` : "");
  $("take").disabled = state.fixed !== null || state.normals.length >= MOST;
  tell();
}

function listChecks() {
  $("checks").replaceChildren(...state.checks.map((check) => {
    const item = document.createElement("li"), button = document.createElement("button");
    button.append((check.thumbnail ??= thumbnail(check.frame)), check.name);
    button.setAttribute("aria-pressed", String(check.frame === state.shown));
    button.onclick = () => {
      state.shown = check.frame;
      state.changed = true;
      for (const other of $("checks").querySelectorAll("button")) {
        other.setAttribute("aria-pressed", String(other === button));
      }
    };
    item.append(button);
    return item;
  }));
}

// --- what the reader does ----------------------------------------------------------------------------

let taken = 0, last = 0;
function take() {
  if (!state.drawn || performance.now() - last < 250) return;
  last = performance.now();
  addNormal(`picture ${++taken}`, state.drawn);
}

function anew() {
  Object.assign(state, { normals: [], detector: null, found: null, fixed: null, changed: true });
  $("fitted-from").hidden = true;
  for (const id of ["sensitivity", "part"]) { $(id).disabled = false; $(id).value = $(id).defaultValue; }
  showPart();
  listNormals();
  draw();
}

async function load(name, buffer) {
  const { detector, shots, category, region: found, more } = await read(buffer, model);
  anew();
  // fixed: null = nothing loaded, false = the whole picture, else its region
  Object.assign(state, { detector, fixed: found ?? false, changed: true });
  $("category").value = category;
  $("part").disabled = true;
  $("fitted-from").hidden = false;
  const pictures = `${shots} normal picture${shots > 1 ? "s" : ""}`;
  $("fitted-from").textContent = `${name}: "${category}", fitted with ${pictures}.`
    + (more ? ` ${more} further categories of the file are not used.` : "");
  listNormals();
}

function offer(blob, name) {
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

function showPart() {
  const part = Number($("part").value);
  say("part-text", part === WHOLE ? "the whole picture" : `a square, ${part} % of the shorter side`);
}

function movePart(x, y) {
  if (Number($("part").value) === WHOLE || state.fixed !== null) return;
  state.centre = [x, y].map((share) => Math.min(1, Math.max(0, share)));
  draw();
  refit(true);
}

function listen() {
  const on = (id, event, action) => $(id).addEventListener(event, action);
  on("use-camera", "click", useCamera);
  on("use-files", "click", () => choose("pictures"));
  on("use-examples", "click", () => useExample(0));
  on("examples", "change", () => useExample(Number($("examples").value)));
  let held = null;
  on("take", "click", take);
  on("take", "keydown", (event) => { if (event.repeat && performance.now() - last > HOLD_MS) take(); });
  const release = () => clearInterval(held);
  on("take", "pointerdown", (event) => {
    release();
    $("take").setPointerCapture(event.pointerId); // held, even if the page moves below the pointer
    held = setInterval(() => { if ($("take").disabled) release(); else take(); }, HOLD_MS);
  });
  for (const event of ["pointerup", "lostpointercapture", "pointercancel", "contextmenu"]) on("take", event, release);
  const files = (id, action) => on(id, "change", async () => {
    await action([...$(id).files]);
    $(id).value = "";
  });
  files("normal-files", addNormals);
  files("check-files", addChecks);
  files("load-detector", async ([file]) => {
    problem();
    try {
      await load(file.name, await file.arrayBuffer());
    } catch (error) {
      problem(`${file.name}: ${error instanceof FileError ? error.message : "It is damaged. Save it again."}`);
    }
  });
  for (const [id, action] of [["normal-zone", addNormals], ["check-zone", addChecks]]) {
    on(id, "dragover", (event) => { event.preventDefault(); $(id).classList.add("drop"); });
    on(id, "dragleave", () => $(id).classList.remove("drop"));
    on(id, "drop", (event) => {
      event.preventDefault();
      $(id).classList.remove("drop");
      action([...event.dataTransfer.files]);
    });
  }
  on("pause", "click", () => {
    state.paused = !state.paused;
    $("pause").setAttribute("aria-pressed", String(state.paused));
    say("pause", state.paused ? "Go on" : "Pause");
  });
  on("sensitivity", "input", tell);
  on("opacity", "input", draw);
  on("part", "input", () => { showPart(); draw(); });
  on("part", "change", () => refit(true));
  on("view", "click", ({ offsetX, offsetY, target }) => {
    movePart(offsetX / target.clientWidth, offsetY / target.clientHeight);
  });
  on("view", "keydown", (event) => {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!step) return;
    event.preventDefault();
    movePart(state.centre[0] + step[0] * 0.04, state.centre[1] + step[1] * 0.04);
  });
  const category = () => $("category").value.trim() || "object";
  on("save-picture", "click", () => $("view").toBlob((blob) => offer(blob, `${category()}.png`)));
  on("save-detector", "click", async () => {
    await fitting;
    const { detector, normals } = state, chosen = region(normals[0].frame);
    const threshold = moved(detector.threshold, Number($("sensitivity").value));
    const blob = await write({ detector, normals, category: category(), threshold, region: chosen.mask && chosen });
    offer(blob, `${category()}.inctrl`);
  });
  on("anew", "click", anew);
}

prepare();
listen();
showPart();
tell();
look();
$("choose").hidden = false;
if (PAGE.fitted) {
  choose("pictures");
  await load(PAGE.fitted, await (await fetch(PAGE.fitted)).arrayBuffer());
}

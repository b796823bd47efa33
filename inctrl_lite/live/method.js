// The method, in plain JavaScript. Each function mirrors one of the Python package (named above it).
// A picture's features: { stages: [{ tokens, unit, grid, width }], embedding }, as the backbone gives them.

const SMALLEST = 5e-7; // heads/prior.py: residual whose logarithm is taken where a patch occurs

// Backbone.encode_images: the frozen network turns a picture of size x size pixels into numbers.
export async function encode(network, picture) {
  const image = new network.Tensor("uint8", picture.data, [picture.height, picture.width, 3]);
  const found = await network.run({ image });
  const stages = network.grids.map((grid, i) => stage(found[`stage_${i}`].data, grid));
  return { stages, embedding: found.global_embedding.data };
}

// residual.stage_residual_map: for each patch of the query, the cosine to the most similar normal patch.
export function match(query, normal, width, itself = false) {
  const nearest = new Float32Array(query.length / width).fill(-1);
  for (let q = 0; q < nearest.length; q++) {
    for (let n = 0; n < normal.length / width; n++) {
      let cosine = 0; // both have unit length
      for (let i = q * width, j = n * width; i < (q + 1) * width; i += 4, j += 4) { // four at once: faster
        cosine += query[i] * normal[j] + query[i + 1] * normal[j + 1]
          + query[i + 2] * normal[j + 2] + query[i + 3] * normal[j + 3];
      }
      if (cosine > nearest[q] && !(itself && q === n)) nearest[q] = cosine;
    }
  }
  return nearest;
}

// PriorHead.forward: residual maps, their peak and their mean, compared with what normal pictures have.
export function score(features, detector) {
  const maps = detector.banks.map((bank, i) => {
    const { unit, grid, width } = features.stages[i];
    return residuals(match(unit, bank, width), grid, detector.grid);
  });
  const prior = priorMap(features, detector), raw = rawScore(maps, prior, detector);
  const { steepness, middle } = detector.config;
  return { map: weightedMap(maps, prior, detector), score: sigmoid(steepness * (raw - detector.level - middle)) };
}

// PriorHead.raw_score: peak of (log residual + prior), plus half the logarithm of the whole map's mean.
function rawScore(maps, prior, { config, middleStage, grid: [rows, columns] }) {
  const usual = average(prior);
  let peak = -Infinity;
  for (let n = 0; n < prior.length; n++) {
    const row = Math.floor(n / columns), column = n % columns;
    const border = row === 0 || column === 0 || row === rows - 1 || column === columns - 1;
    const residual = Math.log(Math.max(maps[middleStage][n], SMALLEST));
    const value = residual + config.prior_weight * (prior[n] - usual) - (border ? config.border_penalty : 0);
    peak = Math.max(peak, value);
  }
  const whole = average(maps.slice(middleStage).map(average));
  return peak + config.whole_weight * Math.log(Math.max(whole, SMALLEST));
}

// PriorHead.weighted_map: what is shown, the residual map, raised where a patch looks damaged by itself.
function weightedMap(maps, prior, { config }) {
  return mean(maps).map((value, n) => Math.min(1, value * Math.exp(config.prior_weight * prior[n])));
}

// PriorHead.prior_map: how damaged a patch looks by itself, whatever the normal pictures are.
function priorMap(features, { direction, offset, middleStage, grid }) {
  const { unit, width, grid: own } = features.stages[middleStage];
  const values = new Float32Array(unit.length / width);
  for (let n = 0; n < values.length; n++) {
    for (let c = 0; c < width; c++) values[n] += unit[n * width + c] * direction[c];
    values[n] += offset;
  }
  return resample(values, own, grid);
}

// fitted.fit_category: what follows from K normal pictures. `model` holds what was trained (page.json).
export function fit(normals, model) {
  const all = normals.map((_, k) => k);
  const banks = model.stageGrids.map((_, i) => join(normals.map((features) => features.stages[i].unit)));
  const detector = { ...model, banks };
  const priors = normals.map((features) => priorMap(features, detector));
  // the residual maps of picture k against some others
  const against = (k, others) => normals[k].stages.map(({ unit, grid, width }, i) => {
    const found = others.length
      ? others.map((j) => pair(normals[k], normals[j], i)) : [match(unit, unit, width, true)];
    return residuals(found.reduce((a, b) => a.map((value, n) => Math.max(value, b[n]))), grid, detector.grid);
  });
  const without = (set, k) => set.filter((j) => j !== k);
  const level = (set) => { // PriorHead.normal_level
    if (set.length === 1) return model.levelOfOne;
    const raw = set.map((k) => rawScore(against(k, without(set, k)), priors[k], detector));
    return average(raw) - model.config.fall_per_doubling * Math.log2(set.length / (set.length - 1));
  };
  detector.level = level(all);
  const maps = all.map((k) => against(k, without(all, k)));
  detector.limits = colourRange(maps.map((one, k) => weightedMap(one, priors[k], detector)), model.grid);
  detector.normalScores = all.length < 2 ? [] : all.map((k) => {
    const raw = rawScore(maps[k], priors[k], detector);
    return sigmoid(model.config.steepness * (raw - level(without(all, k)) - model.config.middle));
  });
  detector.threshold = all.length < 2 ? null : Math.max(...detector.normalScores);
  detector.expectedRate = all.length < 2 ? null : 1 / (all.length + 1);
  detector.thresholdSource = all.length < 2
    ? "none: thresholds compare normal images with each other, and there is only one"
    : `largest leave-one-out score of the ${all.length} normal images: expect about 1 false alarm in `
      + `${all.length + 1} normal images`;
  return detector;
}

// Two normal pictures are compared once, however often the detector is fitted.
const known = new WeakMap();
function pair(one, other, i) {
  if (!known.has(one)) known.set(one, new WeakMap());
  if (!known.get(one).has(other)) known.get(one).set(other, []);
  const { unit, width } = one.stages[i];
  return (known.get(one).get(other)[i] ??= match(unit, other.stages[i].unit, width));
}

// viz.colour_range with residual.normal_residual_statistics: where the colours of maps begin and end.
function colourRange(maps, [rows, columns]) {
  const smooth = (values) => values.map((_, n) => {
    const near = [];
    for (let dy = -1; dy <= 1; dy++) {
      for (let dx = -1; dx <= 1; dx++) {
        const y = Math.floor(n / columns) + dy, x = (n % columns) + dx;
        if (y >= 0 && y < rows && x >= 0 && x < columns) near.push(values[y * columns + x]);
      }
    }
    return average(near);
  });
  const local = smooth(smooth(mean(maps)));
  const spread = smooth(smooth(mean(maps.map((map) => map.map((value, n) => (value - local[n]) ** 2)))));
  const whole = average(maps.map(average));
  const deviation = Math.sqrt(average(maps.map((map) => average(map.map((value) => (value - whole) ** 2)))));
  const low = (average(local) + whole) / 2;
  return [low, low + 8 * Math.max((average(spread.map(Math.sqrt)) + deviation) / 2, 0.005)];
}

// --- small things ------------------------------------------------------------------------------------

export const sigmoid = (x) => 1 / (1 + Math.exp(-x));
export const average = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
const mean = (maps) => maps[0].map((_, n) => average(maps.map((map) => map[n])));

export function join(arrays) {
  const joined = new Float32Array(arrays.reduce((length, array) => length + array.length, 0));
  let at = 0;
  for (const array of arrays) { joined.set(array, at); at += array.length; }
  return joined;
}

// A stage of the network: tokens [N, C] row by row, and the same with unit length.
export function stage(tokens, grid) {
  const width = tokens.length / (grid[0] * grid[1]), unit = new Float32Array(tokens);
  for (let start = 0; start < unit.length; start += width) {
    let square = 0;
    for (let c = 0; c < width; c++) square += unit[start + c] ** 2;
    const scale = 1 / Math.max(Math.sqrt(square), 1e-12);
    for (let c = 0; c < width; c++) unit[start + c] *= scale;
  }
  return { tokens, unit, grid, width };
}

// Cosines as residuals in [0, 1] on the map's grid.
function residuals(nearest, grid, to) {
  return resample(nearest.map((cosine) => Math.min(1, Math.max(0, (1 - cosine) / 2))), grid, to);
}

// residual.resample_map: a map brought to a finer grid by bilinear interpolation.
export function resample(values, [rows, columns], [toRows, toColumns]) {
  if (rows === toRows && columns === toColumns) return values;
  const places = (count, to) => Array.from({ length: to }, (_, i) => {
    const at = Math.max(0, ((i + 0.5) * count) / to - 0.5), low = Math.min(Math.floor(at), count - 1);
    return { low, high: Math.min(low + 1, count - 1), share: at - low };
  });
  const down = places(rows, toRows), across = places(columns, toColumns);
  const found = new Float32Array(toRows * toColumns);
  down.forEach((y, i) => across.forEach((x, j) => {
    const row = (r) => values[r * columns + x.low] * (1 - x.share) + values[r * columns + x.high] * x.share;
    found[i * toColumns + j] = row(y.low) * (1 - y.share) + row(y.high) * y.share;
  }));
  return found;
}

// Preprocessor.__call__: a part of a picture (RGBA bytes) as size x size RGB bytes, as Pillow makes it.
export function shrink({ data, width }, [left, top, right, bottom], size) {
  const across = kernel(right - left, size), down = kernel(bottom - top, size);
  // clamped arrays stay within 0 to 255
  const rows = new Uint8ClampedArray((bottom - top) * size * 3);
  const found = new Uint8ClampedArray(size * size * 3);
  for (let y = 0, to = 0; y < bottom - top; y++) {
    for (const { start, weights } of across) {
      let red = 0, green = 0, blue = 0, at = ((top + y) * width + left + start) * 4;
      for (let i = 0; i < weights.length; i++, at += 4) {
        red += weights[i] * data[at];
        green += weights[i] * data[at + 1];
        blue += weights[i] * data[at + 2];
      }
      rows[to++] = Math.floor(red + 0.5);
      rows[to++] = Math.floor(green + 0.5);
      rows[to++] = Math.floor(blue + 0.5);
    }
  }
  down.forEach(({ start, weights }, y) => {
    for (let x = 0; x < size * 3; x++) {
      let sum = 0;
      for (let i = 0; i < weights.length; i++) sum += weights[i] * rows[(start + i) * size * 3 + x];
      found[y * size * 3 + x] = Math.floor(sum + 0.5);
    }
  });
  return { data: new Uint8Array(found.buffer), width: size, height: size };
}

// The weights of Pillow's bicubic filter for each of `to` pixels that are made from `from`.
function kernel(from, to) {
  const scale = from / to, wide = Math.max(1, scale), reach = 2 * wide, a = -0.5;
  const near = (t) => ((a + 2) * t - (a + 3)) * t * t + 1, far = (t) => (((t - 5) * t + 8) * t - 4) * a;
  const cubic = (t) => (t < 1 ? near(t) : t < 2 ? far(t) : 0);
  return Array.from({ length: to }, (_, i) => {
    const centre = (i + 0.5) * scale;
    const start = Math.max(0, Math.floor(centre - reach + 0.5));
    const length = Math.min(from, Math.floor(centre + reach + 0.5)) - start;
    const weights = Array.from({ length }, (_, j) => cubic(Math.abs((j + start - centre + 0.5) / wide)));
    const total = weights.reduce((sum, weight) => sum + weight, 0);
    // Pillow keeps 22 binary places
    const rounded = (weight) => Math.round((weight / total) * 2 ** 22) / 2 ** 22;
    return { start, weights: Float64Array.from(weights, rounded) };
  });
}

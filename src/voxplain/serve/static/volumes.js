// Maps and images as arrays: reading NIfTI, bringing a map to the image's grid, thresholds, joint maps, colors.
"use strict";
(function (V) {
  const TYPES = { 2: Uint8Array, 4: Int16Array, 16: Float32Array, 128: Uint8Array };
  const MOST = 1 << 21; // cells of an overlay; a larger image gets a coarser one

  async function gunzip(buffer) {
    const stream = new Blob([buffer]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).arrayBuffer();
  }

  // {shape: [slices, rows, columns], data, slope, intercept, facts} of a gzipped NIfTI as our server writes it
  async function read(buffer) {
    const raw = await gunzip(buffer);
    const view = new DataView(raw);
    const size = (axis) => view.getInt16(40 + 2 * axis, true);
    const type = view.getInt16(70, true);
    const start = view.getFloat32(108, true);
    let facts = {};
    if (view.getUint8(348)) {
      const length = view.getInt32(352, true);
      const text = new TextDecoder().decode(new Uint8Array(raw, 360, length - 8));
      facts = JSON.parse(text.replace(/\0+$/, ""));
    }
    return {
      shape: [size(3), size(2), size(1)],
      data: new TYPES[type](raw.slice(start)),
      colors: type === 128,
      slope: view.getFloat32(112, true),
      intercept: view.getFloat32(116, true),
      facts,
    };
  }

  // A word's map on its own grid: values, thresholds, and the way from the image's indices to its cells.
  class Heat {
    constructor(file, cells) {
      const { data, slope, intercept } = file;
      this.shape = file.shape;
      this.cells = cells;
      this.slope = slope;
      this.facts = file.facts;
      this.values = Float32Array.from(data, (value) => value * slope + intercept);
      this.maximum = file.facts.maximum;
    }

    // the value from which on the top percent of the positive cells starts; half a step lower, for rounding
    level(percent) {
      const levels = this.facts.levels;
      if (!levels) return Infinity;
      const low = Math.floor(percent);
      const high = Math.min(100, low + 1);
      const exact = levels[low] + (percent - low) * (levels[high] - levels[low]);
      return Math.max(exact - this.slope / 2, this.slope / 2);
    }

    // the value at an index of the image, linear between cells; 0 outside of the map's field of view
    at(index) {
      return sampled(this.values, this.shape, this.cells.map((row) => row[0] * index[0] + row[1] * index[1] + row[2] * index[2] + row[3]));
    }

    // on a grid over the image's field of view; kept, for the threshold moves more often than the grid
    on(grid) {
      const name = grid.shape.join();
      if (this.kept !== name) {
        this.kept = name;
        this.enlarged = enlarged(this.values, this.shape, through(this.cells, grid));
      }
      return this.enlarged;
    }
  }

  function sampled(values, [slices, rows, columns], place) {
    const size = [slices, rows, columns];
    const low = [0, 0, 0];
    const share = [0, 0, 0];
    for (let axis = 0; axis < 3; axis++) {
      if (!(place[axis] > -0.5 && place[axis] < size[axis] - 0.5)) return 0;
      const inside = Math.min(Math.max(place[axis], 0), size[axis] - 1);
      low[axis] = Math.min(Math.floor(inside), Math.max(0, size[axis] - 2));
      share[axis] = inside - low[axis];
    }
    let total = 0;
    for (let corner = 0; corner < 8; corner++) {
      const step = [(corner >> 2) & 1, (corner >> 1) & 1, corner & 1];
      let weight = 1;
      for (let axis = 0; axis < 3; axis++) weight *= step[axis] ? share[axis] : 1 - share[axis];
      if (weight) total += weight * values[((low[0] + step[0]) * rows + low[1] + step[1]) * columns + low[2] + step[2]];
    }
    return total;
  }

  // a grid over the image's whole field of view: {shape, toImage: [[factor, shift] per axis]}
  function gridOver(shape, finest) {
    let step = 1;
    while (finest.reduce((cells, size) => cells * Math.max(1, Math.floor(size / step)), 1) > MOST) step += 1;
    const grid = finest.map((size) => Math.max(1, Math.floor(size / step)));
    return { shape: grid, toImage: grid.map((size, axis) => [shape[axis] / size, (shape[axis] / size - 1) / 2]) };
  }

  function through(cells, grid) {
    return cells.map((row) => {
      const shift = row[3] + row[0] * grid.toImage[0][1] + row[1] * grid.toImage[1][1] + row[2] * grid.toImage[2][1];
      return [row[0] * grid.toImage[0][0], row[1] * grid.toImage[1][0], row[2] * grid.toImage[2][0], shift, grid.shape];
    });
  }

  function enlarged(values, size, rows) {
    const [slices, high, wide] = rows[0][4];
    const out = new Float32Array(slices * high * wide);
    const straight = rows.every((row, axis) => [0, 1, 2].every((other) => other === axis || Math.abs(row[other]) < 1e-9));
    if (straight) return separable(values, size, rows, [slices, high, wide]);
    let at = 0;
    for (let k = 0; k < slices; k++)
      for (let j = 0; j < high; j++)
        for (let i = 0; i < wide; i++)
          out[at++] = sampled(values, size, rows.map((row) => row[0] * k + row[1] * j + row[2] * i + row[3]));
    return out;
  }

  // the same for aligned axes: one axis after the other
  function separable(values, size, rows, shape) {
    let [current, dims] = [values, [...size]];
    for (let axis = 2; axis >= 0; axis--) {
      const inner = dims.slice(axis + 1).reduce((a, b) => a * b, 1);
      const outer = dims.slice(0, axis).reduce((a, b) => a * b, 1);
      const [old, now] = [dims[axis], shape[axis]];
      const next = new Float32Array(outer * now * inner);
      for (let n = 0; n < now; n++) {
        const place = rows[axis][axis] * n + rows[axis][3];
        if (!(place > -0.5 && place < old - 0.5)) continue;
        const inside = Math.min(Math.max(place, 0), old - 1);
        const low = Math.min(Math.floor(inside), Math.max(0, old - 2));
        const share = inside - low;
        const step = old > 1 ? inner : 0;
        for (let o = 0; o < outer; o++) {
          const from = (o * old + low) * inner;
          const to = (o * now + n) * inner;
          for (let i = 0; i < inner; i++) next[to + i] = current[from + i] + share * (current[from + step + i] - current[from + i]);
        }
      }
      dims[axis] = now;
      current = next;
    }
    return current;
  }

  // at each cell the mean over only those maps that are in their top percent there, as voxplain.masks.joint
  function joint(heats, percent) {
    const first = heats[0];
    const values = new Float32Array(first.values.length);
    const counts = new Uint8Array(values.length);
    for (const heat of heats) {
      const level = heat.level(percent);
      heat.values.forEach((value, cell) => {
        if (value >= level) (values[cell] += value), (counts[cell] += 1);
      });
    }
    let [lowest, highest] = [Infinity, 0];
    values.forEach((value, cell) => {
      if (!counts[cell]) return;
      values[cell] = value / counts[cell];
      lowest = Math.min(lowest, values[cell]);
      highest = Math.max(highest, values[cell]);
    });
    const made = Object.create(Heat.prototype);
    return Object.assign(made, { shape: first.shape, cells: first.cells, slope: first.slope, values, facts: {}, maximum: highest, lowest });
  }

  // 256 colors from deep to light through a hue, or through several
  function ramp(...stops) {
    const table = new Uint8Array(256 * 3);
    for (let n = 0; n < 256; n++) {
      const place = (n / 255) * (stops.length - 1);
      const low = Math.min(Math.floor(place), stops.length - 2);
      for (let c = 0; c < 3; c++) table[3 * n + c] = stops[low][c] + (place - low) * (stops[low + 1][c] - stops[low][c]);
    }
    return table;
  }

  function hueRamp(hue) {
    return ramp(hue.map((c) => c * 0.55), hue, hue.map((c) => c + (255 - c) * 0.62));
  }

  const HUES = [[230, 159, 0], [86, 180, 233], [0, 178, 128], [240, 228, 66], [235, 110, 40], [214, 132, 184], [64, 140, 230]];
  const HEATED = ramp([101, 21, 110], [159, 42, 99], [212, 72, 66], [245, 125, 21], [250, 193, 39], [252, 255, 164]);
  const UNSURE = [107, 140, 184]; // one faint color, no gradient, as in the report
  const COLDER = hueRamp([70, 150, 240]);
  const WARMER = hueRamp([240, 130, 40]);

  // RGBA of all layers: the mean of their colors by strength. A layer is {values, low, high, table, hue}: colors
  // run from `from` (else `low`) to `high`; `flat` has one faint color, `signed` another table for negative values.
  function blend(layers, opacity, out) {
    out.fill(0);
    const cells = out.length / 4;
    for (let cell = 0; cell < cells; cell++) {
      let red = 0;
      let green = 0;
      let blue = 0;
      let sum = 0;
      let most = 0;
      for (let n = 0; n < layers.length; n++) {
        const layer = layers[n];
        let value = layer.values[cell];
        let table = layer.table;
        if (layer.signed && value < 0) {
          value = -value;
          table = layer.negative;
        }
        if (!(value > layer.low)) continue;
        const from = layer.from ?? layer.low;
        const strength = Math.min(1, Math.max(0, (value - from) / (layer.high - from || 1)));
        const alpha = layer.flat ? 0.35 : Math.min(1, strength / 0.12);
        const color = 3 * ((layer.flat ? 0.5 : strength) * 255 + 0.5 | 0);
        red += alpha * table[color];
        green += alpha * table[color + 1];
        blue += alpha * table[color + 2];
        sum += alpha;
        if (alpha > most) most = alpha;
      }
      if (!sum) continue;
      const at = 4 * cell;
      out[at] = red / sum;
      out[at + 1] = green / sum;
      out[at + 2] = blue / sum;
      out[at + 3] = 255 * opacity * most;
    }
  }

  const flatTable = (color) => ramp(color, color);
  Object.assign(V, { read, Heat, gridOver, joint, hueRamp, flatTable, blend, HUES, HEATED, UNSURE, COLDER, WARMER });
})((window.Voxplain = window.Voxplain || {}));

// What is drawn in ink over the picture: outlines of maps, the crosshair, the letters at the borders, a drawn region.
"use strict";
(function (V) {
  const LETTERS = [["R", "L"], ["A", "P"], ["S", "I"]]; // at the high and low end of each RAS axis

  // How one tile of the stage lies on screen: which axes run along it, and from indices to pixels.
  function tileOf(stage, number) {
    const slice = stage.nv.screenSlices[number];
    const [left, top, width, height] = slice.leftTopWidthHeight;
    if (slice.axCorSag > 2 || !(width > 0)) return null;
    const place = (x, y) => stage.indexAt(x, y, number);
    const [x0, y0] = [left + width / 4, top + height / 4];
    const [origin, right, down] = [place(x0, y0), place(x0 + width / 2, y0), place(x0, y0 + height / 2)];
    if (![...origin, ...right, ...down].every(Number.isFinite)) return null;
    const along = (to) => [0, 1, 2].reduce((best, axis) => (Math.abs(to[axis] - origin[axis]) > Math.abs(to[best] - origin[best]) ? axis : best), 0);
    const [columns, rows] = [along(right), along(down)];
    const stepX = (right[columns] - origin[columns]) / (width / 2);
    const stepY = (down[rows] - origin[rows]) / (height / 2);
    const through = 3 - columns - rows;
    return {
      number, left, top, width, height, columns, rows, through,
      x: (index) => x0 + (index - origin[columns]) / stepX,
      y: (index) => y0 + (index - origin[rows]) / stepY,
      index: (x, y) => [origin[columns] + (x - x0) * stepX, origin[rows] + (y - y0) * stepY],
      ends: [ends(stage, origin, right), ends(stage, origin, down)],
    };
  }

  // the letters at the low and the high end of a direction on screen
  function ends(stage, from, to) {
    const [a, b] = [stage.world(from), stage.world(to)];
    const axis = [0, 1, 2].reduce((best, each) => (Math.abs(b[each] - a[each]) > Math.abs(b[best] - a[best]) ? each : best), 0);
    const letters = LETTERS[stage.flat && axis === 1 ? 2 : axis]; // a radiograph's rows run from superior to inferior
    return b[axis] > a[axis] ? [letters[1], letters[0]] : letters;
  }

  // Lines around the cells of at least `level` in one slice, by marching squares, as a path in pixels.
  function outline(path, tile, layer, grid, slice) {
    const size = grid.shape;
    const stride = [size[1] * size[2], size[2], 1];
    const toX = grid.toImage[tile.columns];
    const toY = grid.toImage[tile.rows];
    const at = Math.round((slice - grid.toImage[tile.through][1]) / grid.toImage[tile.through][0]);
    const base = Math.min(Math.max(at, 0), size[tile.through] - 1) * stride[tile.through];
    const [wide, high] = [size[tile.columns], size[tile.rows]];
    const value = (i, j) => (i < 0 || j < 0 || i >= wide || j >= high ? 0 : layer.values[base + i * stride[tile.columns] + j * stride[tile.rows]]);
    const point = (i, j) => [tile.x(i * toX[0] + toX[1]), tile.y(j * toY[0] + toY[1])];
    const cross = (a, b, va, vb) => {
      const share = (layer.low - va) / (vb - va);
      return [a[0] + share * (b[0] - a[0]), a[1] + share * (b[1] - a[1])];
    };
    for (let j = -1; j < high; j++) {
      for (let i = -1; i < wide; i++) {
        const values = [value(i, j), value(i + 1, j), value(i + 1, j + 1), value(i, j + 1)];
        const kind = values.reduce((bits, each, n) => bits | (each >= layer.low ? 1 << n : 0), 0);
        if (kind === 0 || kind === 15) continue;
        const corners = [point(i, j), point(i + 1, j), point(i + 1, j + 1), point(i, j + 1)];
        const met = [];
        for (let n = 0; n < 4; n++) {
          const m = (n + 1) % 4;
          if (((kind >> n) ^ (kind >> m)) & 1) met.push(cross(corners[n], corners[m], values[n], values[m]));
        }
        for (let n = 0; n + 1 < met.length; n += 2) {
          path.moveTo(...met[n]);
          path.lineTo(...met[n + 1]);
        }
      }
    }
  }

  function cross(ink, tile, voxel, scale) {
    const [x, y] = [Math.round(tile.x(voxel[tile.columns])) + 0.5, Math.round(tile.y(voxel[tile.rows])) + 0.5];
    const gap = 7 * scale;
    ink.beginPath();
    for (const [from, to] of [[tile.left, x - gap], [x + gap, tile.left + tile.width]])
      if (to > from) ink.moveTo(from, y), ink.lineTo(to, y);
    for (const [from, to] of [[tile.top, y - gap], [y + gap, tile.top + tile.height]])
      if (to > from) ink.moveTo(x, from), ink.lineTo(x, to);
    ink.strokeStyle = "rgba(120, 220, 255, 0.55)";
    ink.lineWidth = scale;
    ink.stroke();
  }

  function letters(ink, tile, scale) {
    const [[left, right], [top, bottom]] = tile.ends;
    ink.font = `600 ${13 * scale}px system-ui, sans-serif`;
    ink.textAlign = "center";
    ink.textBaseline = "middle";
    const inset = 11 * scale;
    const middle = [tile.left + tile.width / 2, tile.top + tile.height / 2];
    const places = [[left, tile.left + inset, middle[1]], [right, tile.left + tile.width - inset, middle[1]], [top, middle[0], tile.top + inset], [bottom, middle[0], tile.top + tile.height - inset]];
    for (const [letter, x, y] of places) {
      ink.strokeStyle = "rgba(0, 0, 0, 0.8)";
      ink.lineWidth = 3 * scale;
      ink.strokeText(letter, x, y);
      ink.fillStyle = "#ffd98a"; // seen on bone and on air
      ink.fillText(letter, x, y);
    }
  }

  function lasso(ink, tile, points, scale) {
    ink.beginPath();
    points.forEach(([i, j], n) => ink[n ? "lineTo" : "moveTo"](tile.x(i), tile.y(j)));
    ink.closePath();
    ink.fillStyle = "rgba(255, 255, 255, 0.16)";
    ink.fill();
    ink.strokeStyle = "#fff";
    ink.lineWidth = 1.5 * scale;
    ink.setLineDash([5 * scale, 4 * scale]);
    ink.stroke();
    ink.setLineDash([]);
  }

  // everything for one stage; called after each repaint of the picture
  function draw(stage) {
    const canvas = stage.inkCanvas;
    const [width, height] = [stage.glCanvas.width, stage.glCanvas.height];
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    const ink = canvas.getContext("2d");
    ink.clearRect(0, 0, width, height);
    if (!stage.ready) return;
    const scale = width / (stage.glCanvas.clientWidth || width);
    stage.tiles = stage.nv.screenSlices.map((_, number) => tileOf(stage, number)).filter(Boolean);
    for (const tile of stage.tiles) {
      ink.save();
      ink.beginPath();
      ink.rect(tile.left, tile.top, tile.width, tile.height);
      ink.clip();
      if (stage.outlined)
        for (const layer of stage.layers.filter((each) => !each.flat && !each.signed && Number.isFinite(each.low))) {
          const path = new Path2D();
          outline(path, tile, layer, stage.grid, stage.voxel[tile.through]);
          ink.lineJoin = ink.lineCap = "round";
          for (const [color, wide] of [["rgba(0, 0, 0, 0.55)", 4], [`rgb(${layer.hue.join()})`, 2]]) {
            ink.strokeStyle = color;
            ink.lineWidth = wide * scale;
            ink.stroke(path);
          }
        }
      if (stage.region && stage.region.through === tile.through) lasso(ink, tile, stage.region.points, scale);
      if (stage.crosshair) cross(ink, tile, stage.voxel, scale);
      letters(ink, tile, scale);
      ink.restore();
    }
  }

  Object.assign(V, { drawInk: draw });
})((window.Voxplain = window.Voxplain || {}));

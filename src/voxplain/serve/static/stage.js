// One picture: NiiVue with an image and one layer of color on it, and the ink above.
"use strict";
(function (V) {
  const OPTIONS = {
    backColor: [0, 0, 0, 1],
    crosshairWidth: 0, // drawn in ink
    crosshairColor: [0, 0, 0, 0],
    isRadiologicalConvention: true,
    sagittalNoseLeft: true, // as in the report: anterior on the left
    isOrientationTextVisible: false,
    multiplanarShowRender: 0,
    isColorbar: false,
    dragAndDropEnabled: false,
    isForceMouseClickToVoxelCenters: true,
    loadingText: "",
    logLevel: "error",
    tileMargin: 0,
    multiplanarPadPixels: 4,
  };

  // The header of an RGBA volume over the image's field of view, and room for its cells.
  function colorVolume(grid, ras) {
    const size = grid.shape;
    const buffer = new ArrayBuffer(352 + 4 * size[0] * size[1] * size[2]);
    const view = new DataView(buffer);
    const rows = ras.slice(0, 3).map((row) => {
      const shift = row[3] + [0, 1, 2].reduce((sum, axis) => sum + row[axis] * grid.toImage[axis][1], 0);
      return [2, 1, 0].map((axis) => row[axis] * grid.toImage[axis][0]).concat(shift);
    });
    view.setInt32(0, 348, true);
    [3, size[2], size[1], size[0], 1, 1, 1, 1].forEach((each, n) => view.setInt16(40 + 2 * n, each, true));
    view.setInt16(70, 2304, true);
    view.setInt16(72, 32, true);
    [1, ...[0, 1, 2].map((n) => Math.hypot(...rows.map((row) => row[n]))), 1, 1, 1, 1].forEach((each, n) => view.setFloat32(76 + 4 * n, each, true));
    view.setFloat32(108, 352, true);
    view.setFloat32(112, 1, true);
    view.setUint8(123, 2);
    view.setInt16(254, 1, true);
    rows.flat().forEach((each, n) => view.setFloat32(280 + 4 * n, each, true));
    [110, 43, 49, 0].forEach((each, n) => view.setUint8(344 + n, each));
    return buffer;
  }

  // the inverse of an affine [4, 4] of which only three rows matter
  function inverse(affine) {
    const [[a, b, c], [d, e, f], [g, h, i]] = affine;
    const det = a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g);
    const turned = [
      [e * i - f * h, c * h - b * i, b * f - c * e],
      [f * g - d * i, a * i - c * g, c * d - a * f],
      [d * h - e * g, b * g - a * h, a * e - b * d],
    ].map((row) => row.map((each) => each / det));
    return turned.map((row) => [...row, -row.reduce((sum, each, n) => sum + each * affine[n][3], 0)]);
  }

  const apply = (rows, point) => rows.map((row) => row[0] * point[0] + row[1] * point[1] + row[2] * point[2] + row[3]);

  class Stage {
    constructor(figure) {
      this.figure = figure;
      this.glCanvas = figure.querySelector("canvas.gl");
      this.inkCanvas = figure.querySelector("canvas.ink");
      this.caption = figure.querySelector("figcaption");
      this.ready = false;
      this.layers = [];
      this.crosshair = true;
      this.moved = () => {};
    }

    // once, however often it is asked for
    start() {
      this.starting ??= this.begin();
      return this.starting;
    }

    async begin() {
      this.nv = new window.niivue.Niivue(OPTIONS);
      await this.nv.attachToCanvas(this.glCanvas, false);
      this.glCanvas.parentElement.style.backgroundColor = "";
      const paint = this.nv.drawScene.bind(this.nv);
      this.nv.drawScene = (...given) => {
        if (this.glCanvas.clientWidth < 8) return null; // out of sight
        const done = paint(...given);
        V.drawInk(this);
        return done;
      };
      this.nv.onLocationChange = () => this.located();
      this.glCanvas.addEventListener("dblclick", (event) => event.stopImmediatePropagation(), true);
      this.nv.opts.dragMode = this.nv.dragModes.pan;
      this.limit = Math.min(512, this.nv.uiData.max3D || 512);
    }

    // an image as our server sends it, and what describe() says of it; `load` is called if it is not shown yet
    show(load, facts, name) {
      if (this.wanted === name) return this.showing;
      this.wanted = name;
      const before = this.showing ?? Promise.resolve();
      this.showing = before.catch(() => {}).then(() => this.replace(load, facts));
      this.showing.catch(() => (this.wanted = null));
      return this.showing;
    }

    async replace(load, facts) {
      const buffer = await load();
      this.ready = false;
      while (this.nv.volumes.length) this.nv.removeVolume(this.nv.volumes[0]);
      this.ras = facts.ras;
      this.inverse = inverse(facts.ras);
      this.flat = facts.ndim === 2;
      this.shape = facts.shape;
      this.windowed = facts.channels !== 3;
      await this.nv.loadFromArrayBuffer(buffer, "image.nii.gz");
      const dims = this.nv.volumes[0].hdr.dims;
      this.grid = V.gridOver(facts.shape, [dims[3], dims[2], dims[1]]);
      await this.nv.loadFromArrayBuffer(colorVolume(this.grid, facts.ras), "colors.nii");
      this.colors = this.nv.volumes[1].img;
      this.images = { own: this.nv.volumes[0].img };
      this.nv.setSliceType(this.flat ? this.nv.sliceTypeAxial : this.nv.sliceTypeMultiplanar);
      this.ready = true;
      this.locate();
    }

    // another image of the same shape, to flicker with
    async lend(load, name) {
      if (this.images[name]) return;
      const file = await V.read(await load());
      this.images[name] = file.data;
    }

    swap(name) {
      this.nv.volumes[0].img = this.images[name];
      this.nv.updateGLVolume();
    }

    window(low, high) {
      if (!this.windowed || !this.nv.volumes.length) return;
      this.nv.volumes[0].cal_min = low;
      this.nv.volumes[0].cal_max = high;
      this.nv.updateGLVolume();
    }

    // layers as V.blend takes them, each with its hue; repaints
    paint(layers, opacity, outlined) {
      this.layers = layers;
      this.outlined = outlined;
      V.blend(outlined ? layers.filter((layer) => layer.flat || layer.signed) : layers, opacity, this.colors);
      this.nv.refreshLayers(this.nv.volumes[1], 1);
      this.nv.drawScene();
    }

    world(index) {
      return apply(this.ras, index).slice(0, 3);
    }

    // the index (slice, row, column) under a pixel of a tile
    indexAt(x, y, tile) {
      const frac = this.nv.screenXY2TextureFrac(x, y, tile, false);
      return apply(this.inverse, this.nv.frac2mm([frac[0], frac[1], frac[2]]));
    }

    located() {
      if (!this.ready) return;
      this.locate();
      this.moved(this.voxel, this.world(this.voxel));
    }

    locate() {
      const place = apply(this.inverse, this.nv.frac2mm(this.nv.scene.crosshairPos));
      this.voxel = place.map((each, axis) => Math.min(Math.max(Math.round(each), 0), this.shape[axis] - 1));
    }

    // move the crosshair, quietly: nobody is told
    go(voxel) {
      this.voxel = voxel.map((each, axis) => Math.min(Math.max(Math.round(each), 0), this.shape[axis] - 1));
      this.nv.scene.crosshairPos = this.nv.mm2frac(this.world(this.voxel));
      this.nv.drawScene();
    }

    goWorld(world) {
      this.go(apply(this.inverse, world));
    }

    // hand the voxels inside a line that the user draws on one slice to `done`, as {points, through, bits}
    askRegion(done) {
      const canvas = this.inkCanvas;
      canvas.classList.add("drawing");
      this.drawing = true;
      const at = (event) => {
        const box = canvas.getBoundingClientRect();
        return [((event.clientX - box.left) / box.width) * canvas.width, ((event.clientY - box.top) / box.height) * canvas.height];
      };
      let tile = null;
      canvas.onpointerdown = (event) => {
        const [x, y] = at(event);
        tile = this.tiles.find((each) => x >= each.left && y >= each.top && x < each.left + each.width && y < each.top + each.height);
        if (!tile) return;
        canvas.setPointerCapture(event.pointerId);
        this.region = { through: tile.through, columns: tile.columns, rows: tile.rows, points: [tile.index(x, y)] };
      };
      canvas.onpointermove = (event) => {
        if (!tile) return;
        this.region.points.push(tile.index(...at(event)));
        V.drawInk(this);
      };
      canvas.onpointercancel = () => (tile = this.region = null);
      canvas.onpointerup = () => {
        if (!tile) return;
        tile = null;
        this.endRegion();
        done(this.bitsInside(this.region));
      };
    }

    endRegion() {
      this.inkCanvas.classList.remove("drawing");
      this.drawing = false;
      this.inkCanvas.onpointerdown = this.inkCanvas.onpointermove = this.inkCanvas.onpointerup = this.inkCanvas.onpointercancel = null;
    }

    bitsInside({ through, columns, rows, points }) {
      const bits = new Uint8Array(Math.ceil((this.shape[0] * this.shape[1] * this.shape[2]) / 8));
      const stride = [this.shape[1] * this.shape[2], this.shape[2], 1];
      const inside = (x, y) => {
        let odd = false;
        for (let n = 0, m = points.length - 1; n < points.length; m = n++) {
          const [[x1, y1], [x2, y2]] = [points[n], points[m]];
          if (y1 > y !== y2 > y && x < ((x2 - x1) * (y - y1)) / (y2 - y1) + x1) odd = !odd;
        }
        return odd;
      };
      for (let j = 0; j < this.shape[rows]; j++)
        for (let i = 0; i < this.shape[columns]; i++)
          if (inside(i, j)) {
            const cell = i * stride[columns] + j * stride[rows] + this.voxel[through] * stride[through];
            bits[cell >> 3] |= 128 >> (cell & 7);
          }
      return bits;
    }
  }

  const supported = () => Boolean(document.createElement("canvas").getContext("webgl2"));

  Object.assign(V, { Stage, supported });
})((window.Voxplain = window.Voxplain || {}));

// From the state to layers of color: single words, joint maps, differences, what stands beside.
"use strict";
(function (V) {
  const at = (id) => document.getElementById(id);

  // The word to begin with: the one whose map is most its own, of those that can be told apart; by what words changed,
  // where that was measured, since words of no content may be looked at in places of their own.
  function mostDistinct(view, recipe) {
    const score = (word) => (word.recipes.effect ?? word.recipes[recipe])?.distinctness ?? 0;
    const sure = view.words.filter((word) => recipe in word.recipes && word.recipes[recipe].sure);
    return sure.sort((a, b) => score(b) - score(a))[0]?.label ?? null;
  }

  async function layersOf(view, recipe, state, grid) {
    const colors = V.hues(view, state.words);
    const { unit } = view.recipe(recipe);
    const known = (names) => names.filter((name) => view.has(recipe, name));
    const layers = [];
    for (const name of known(state.words)) {
      const heat = await view.heat(recipe, name);
      const peak = view.entries.get(name)?.recipes[recipe]?.peak;
      layers.push(layerOf(heat, name, colors.get(name), view.sure(recipe, name), state.top, grid, peak));
    }
    if (state.across && layers.length) {
      const sure = layers.filter((layer) => !layer.flat);
      const from = Math.min(...sure.map((layer) => layer.low));
      const high = Math.max(...sure.map((layer) => layer.high), ...view.words.map((word) => word.recipes[recipe]?.maximum ?? 0));
      sure.forEach((layer) => Object.assign(layer, { from, high }));
    }
    const joined = known(state.joined);
    const sure = joined.filter((name) => view.sure(recipe, name));
    for (const name of joined.filter((each) => !sure.includes(each)))
      layers.push(layerOf(await view.heat(recipe, name), name, V.UNSURE, false, state.top, grid));
    if (sure.length) {
      const heats = await Promise.all(sure.map((name) => view.heat(recipe, name)));
      const made = V.joint(heats, state.top);
      layers.push({ label: sure.join(" + "), values: made.on(grid), low: made.lowest * 0.999, high: made.maximum, table: V.HEATED, hue: [245, 125, 21], peak: peakOf(made, view) });
    }
    return layers.map((layer) => ({ ...layer, unit }));
  }

  function layerOf(heat, label, hue, sure, top, grid, peak) {
    const common = { label, values: heat.on(grid), low: heat.level(top), high: heat.maximum };
    return sure ? { ...common, table: V.hueRamp(hue), hue, peak } : { ...common, table: V.flatTable(V.UNSURE), hue: V.UNSURE, flat: true };
  }

  // the voxel of the image nearest to the highest cell of a map with aligned axes
  function peakOf(heat, view) {
    let best = 0;
    heat.values.forEach((value, cell) => (best = value > heat.values[best] ? cell : best));
    const [, rows, columns] = heat.shape;
    const cell = [Math.floor(best / (rows * columns)), Math.floor(best / columns) % rows, best % columns];
    return cell.map((each, axis) => Math.min(Math.max(Math.round((each - heat.cells[axis][3]) / (heat.cells[axis][axis] || 1)), 0), view.sample.shape[axis] - 1));
  }

  // the maps of another run less those of this one, each relative to its own maximum
  async function changes(app, view, recipe, grid) {
    const names = [...app.state.words, ...app.state.joined].filter((name) => view.has(recipe, name) && app.view.has(recipe, name));
    const layers = [];
    for (const name of names.filter((each) => view.sure(recipe, each) && app.view.sure(recipe, each))) {
      const [theirs, ours] = await Promise.all([view.heat(recipe, name), app.view.heat(recipe, name)]);
      const [after, before] = [theirs.on(grid), ours.on(grid)];
      if (after.length !== before.length) continue;
      const values = after.map((value, cell) => value / (theirs.maximum || 1) - before[cell] / (ours.maximum || 1));
      const bar = new Uint8Array(768);
      for (let n = 0; n < 256; n++) {
        const table = n < 128 ? V.COLDER : V.WARMER;
        const place = n < 128 ? 255 - 2 * n : 2 * n - 255;
        for (let c = 0; c < 3; c++) bar[3 * n + c] = table[3 * Math.max(0, place) + c];
      }
      layers.push({ label: `${name}: less here (blue), more here (orange)`, values, unit: "each map relative to its own maximum", low: 0.12, high: 1, table: V.WARMER, negative: V.COLDER, signed: true, bar, hue: [240, 130, 40] });
    }
    return layers;
  }

  const title = (view, recipe) => V.recipeLabel(view, view.recipe(recipe));

  const nameOf = (variant) => `${variant.kind}/${variant.word}`;

  // The right picture: another recipe, another run, or the image made again with other words.
  async function showBeside(app, turn) {
    const { state, view, stage, other } = app;
    const [kind, ...rest] = state.beside.split(":");
    const chosen = rest.join(":");
    const there = kind === "recipe" ? view.recipe(chosen) : kind === "run" ? app.runs.some((run) => run.id === chosen) : view.variants[Number(chosen)];
    const shown = Boolean(state.beside && there);
    stage.caption.textContent = shown ? `${kind === "run" ? `${view.id}: ` : ""}${title(view, app.recipeNow())}` : "";
    at("views").classList.toggle("two", shown);
    at("pane-right").hidden = !shown;
    if (!shown) return;
    await other.start();
    let [theirs, recipe, layers] = [view, app.recipeNow(), []];
    if (kind === "run") theirs = await app.viewOf(chosen);
    if (kind === "recipe") recipe = chosen === state.recipe ? app.view.recipes.find((each) => !each.part && each.name !== state.recipe).name : chosen;
    if (!theirs.recipe(recipe)) recipe = theirs.recipes[0].name;
    if (kind === "variant") {
      const load = () => app.source.variant(view.id, Number(chosen), "image", other.limit);
      await stage.lend(load, nameOf(there));
      await other.show(load, view.sample, `${view.id}/${nameOf(there)}`);
    } else await other.show(() => app.source.sample(theirs.id, other.limit), theirs.sample, theirs.id);
    if (turn !== app.turn) return;
    const windows = theirs.sample.windows;
    other.window(...(windows[state.window] ?? Object.values(windows)[0]));
    other.goWorld(stage.world(stage.voxel));
    if (kind === "variant") {
      other.caption.textContent = `same noise, ${there.kind === "without" ? "without" : "side swapped:"} “${there.word}”${state.difference ? ", and what changed" : ""}`;
      if (state.difference) {
        const heat = await view.difference(Number(chosen), nameOf(there));
        const made = layerOf(heat, "difference of the images", [245, 125, 21], true, state.top, other.grid);
        layers = [{ ...made, table: V.HEATED, unit: `size of the change in ${view.sample.unit}` }];
      }
    } else if (kind === "run" && state.difference) {
      other.caption.textContent = `${theirs.id} less ${view.id}: ${title(theirs, recipe)}`;
      layers = await changes(app, theirs, recipe, other.grid);
    } else {
      other.caption.textContent = `${kind === "run" ? `${theirs.id}: ` : ""}${title(theirs, recipe)}`;
      layers = await layersOf(theirs, recipe, state, other.grid);
    }
    if (turn !== app.turn) return;
    other.paint(state.hidden ? [] : layers, state.opacity / 100, state.outline);
    const suffix = kind === "recipe" ? `, ${theirs.recipe(recipe).title}` : kind === "run" && !state.difference ? `, ${theirs.id}` : "";
    if (!state.hidden) V.drawLegend(at("legend"), app, [...app.layers, ...layers.map((layer) => ({ ...layer, label: layer.label + suffix }))]);
  }

  // the two images in turn in one place, slower than three times a second
  function flicker(app) {
    clearInterval(app.flickering);
    app.flickering = null;
    const [kind, chosen] = app.state.beside.split(":");
    const variant = app.view.variants[Number(chosen)];
    if (app.stage.images) app.stage.swap("own");
    if (!app.state.flicker || kind !== "variant" || !variant) return;
    const other = nameOf(variant);
    let own = true;
    app.flickering = setInterval(() => {
      own = !own || !app.stage.images[other];
      app.stage.swap(own ? "own" : other);
    }, 800);
  }

  function drawHeader(app) {
    const list = at("run");
    list.replaceChildren(...app.runs.map((run) => V.element("option", { value: run.id, selected: run.id === app.view.id, disabled: Boolean(run.error) }, run.error ? `${run.id} (damaged)` : `${run.id}: ${run.prompt.slice(0, 48)}`)));
    at("run-choice").hidden = app.runs.length < 2;
    at("new-open").hidden = !app.generate;
    document.title = `${app.view.prompt.slice(0, 60)} · Voxplain`;
  }

  // the peak of the next (or previous) word of the prompt that can be told apart, and its map
  function nextPeak(app, step) {
    const { view, state } = app;
    const words = view.words.filter((word) => word.recipes[state.recipe]?.sure);
    if (!words.length) return app.say("no word of this prompt can be told apart");
    const now = words.findIndex((word) => word.label === state.last);
    const word = words[(now + step + words.length) % words.length];
    Object.assign(state, { words: [word.label], joined: [], last: word.label, kept: null });
    app.go(word.recipes[state.recipe].peak);
    return app.refresh();
  }

  // only the last word, and back
  function solo(app) {
    const { state } = app;
    if (state.kept) return app.set({ ...state.kept, kept: null });
    const focused = document.activeElement?.dataset.word ?? state.last;
    if (!focused) return app.say("press a word first");
    return app.set({ kept: { words: state.words, joined: state.joined }, words: [focused], joined: [], last: focused, hidden: false });
  }

  function listen(app) {
    const { state } = app;
    const windows = () => Object.keys(app.view.sample.windows);
    const variant = () => state.beside.startsWith("variant");
    const recipes = () => V.mainRecipes(app.view).filter((recipe) => !recipe.statistic).map((recipe) => recipe.name);
    const keys = {
      s: () => solo(app),
      j: () => (document.activeElement?.dataset.word ? app.press(document.activeElement.dataset.word, true) : app.say("move to a word by Tab first")),
      h: () => app.set({ hidden: !state.hidden }),
      Escape: () => (app.stage.drawing || app.stage.region ? app.clearRegion() : app.set({ words: [], joined: [], kept: null })),
      e: () => app.set({ recipe: recipes()[(recipes().indexOf(state.recipe) + 1) % recipes().length] }),
      b: () => app.sideBySide(),
      o: () => app.set({ outline: !state.outline }),
      n: () => nextPeak(app, 1),
      p: () => nextPeak(app, -1),
      "[": () => app.set({ top: Math.max(1, state.top - 5) }),
      "]": () => app.set({ top: Math.min(100, state.top + 5) }),
      d: () => app.set({ difference: !state.difference }),
      f: () => (variant() ? app.set({ flicker: !state.flicker }) : app.say("choose an image without a word first")),
      r: () => app.set({ drawer: !state.drawer }),
      "?": () => at("help").showModal(),
    };
    const typing = (target) => target.closest("dialog, textarea, select, input:not([type=range]):not([type=checkbox])");
    document.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || typing(event.target)) return;
      const window = "123".includes(event.key) && windows()[Number(event.key) - 1];
      const arrow = event.target === app.stage.glCanvas && ARROWS[event.key];
      const done = event.key === " " && !event.target.closest("button, summary, input") ? () => (event.repeat || state.hidden ? null : app.set({ hidden: (app.peeking = true) })) : keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
      if (!window && !done && !arrow) return;
      event.preventDefault();
      event.stopPropagation(); // NiiVue has keys of its own
      if (arrow) app.go(app.stage.voxel.map((each, axis) => each + arrow[axis]));
      else if (window) app.set({ window });
      else done();
    }, true);
    document.addEventListener("keyup", (event) => {
      if (event.key === " " && app.peeking) app.set({ hidden: (app.peeking = false) });
    }, true);
    addEventListener("hashchange", () => location.reload()); // a link to another view, put into this page's address
    at("run").addEventListener("change", (event) => app.open(event.target.value));
    at("drawer-open").addEventListener("click", () => app.set({ drawer: !state.drawer }));
    at("help-open").addEventListener("click", () => at("help").showModal());
    at("new-open").addEventListener("click", () => {
      V.drawNew(at("new"), app);
      at("new").showModal();
    });
  }

  const ARROWS = { ArrowLeft: [0, 0, -1], ArrowRight: [0, 0, 1], ArrowUp: [0, -1, 0], ArrowDown: [0, 1, 0], PageUp: [1, 0, 0], PageDown: [-1, 0, 0] };

  Object.assign(V, { mostDistinct, layersOf, showBeside, flicker, drawHeader, listen });
})((window.Voxplain = window.Voxplain || {}));

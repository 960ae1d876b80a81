// The side: how maps are displayed, what their colors mean, and which words count at the crosshair.
"use strict";
(function (V) {
  const { element, renew } = V;

  const short = (value) => (Math.abs(value) >= 100 ? value.toFixed(0) : value === 0 ? "0" : Math.abs(value) >= 0.0001 ? value.toPrecision(2) : value.toExponential(1));

  function slider(text, id, value, range, shown, changed) {
    const output = element("output", { htmlFor: id }, shown(value));
    const input = element("input", { type: "range", id, min: range[0], max: range[1], step: range[2], value });
    input.addEventListener("input", () => {
      output.textContent = shown(Number(input.value));
      changed(Number(input.value));
    });
    return element("div", { className: "slider" }, element("label", { htmlFor: id }, text), input, output);
  }

  function choice(text, options, current, changed) {
    const buttons = options.map(([value, label, key]) =>
      element("button", { type: "button", "aria-pressed": String(value === current), title: key ? `key ${key}` : "", "data-value": value, onclick: () => changed(value) }, label));
    return element("div", { className: "choice", role: "group", "aria-label": text }, ...buttons);
  }

  const toggle = (text, key, on, changed, name) =>
    element("button", { type: "button", className: "toggle", "aria-pressed": String(on), title: `key ${key}`, "data-name": name, onclick: changed }, text);

  // recipes that a person chooses between: not those of parts of the steps or of one layer
  const mainRecipes = (view) => view.recipes.filter((recipe) => !recipe.part && !recipe.layer);

  function recipeLabel(view, recipe) {
    const alone = mainRecipes(view).filter((each) => each.title === recipe.title).length === 1;
    const title = recipe.title[0].toUpperCase() + recipe.title.slice(1);
    return alone ? title : `${title} (${recipe.name})`;
  }

  function drawControls(place, app) {
    const { view, state } = app;
    const recipes = mainRecipes(view).filter((recipe) => !recipe.statistic).map((recipe) => [recipe.name, recipeLabel(view, recipe), "E"]);
    const windows = Object.keys(view.sample.windows).map((name, n) => [name, name, String(n + 1)]);
    const variants = view.variants.map((made, n) => [`variant:${n}`, `${made.kind === "without" ? "without" : "side swapped:"} “${made.word}”`]);
    const rows = [
      element("h2", {}, "Show"),
      choice("What a map shows", recipes, state.recipe, (recipe) => app.set({ recipe })),
      element("div", { className: "row" },
        toggle("Side by side", "B", state.beside.startsWith("recipe"), () => app.sideBySide(), "beside"),
        toggle("Outline only", "O", state.outline, () => app.set({ outline: !state.outline }), "outline"),
        toggle("Hide maps", "H, or hold space", state.hidden, () => app.set({ hidden: !state.hidden }), "hide")),
      slider("Show top", "show-top", state.top, [1, 100, 1], (value) => `${value} %`, (top) => app.set({ top }, true)),
      slider("Opacity", "opacity", state.opacity, [0, 100, 1], (value) => `${value} %`, (opacity) => app.set({ opacity }, true)),
      element("h2", {}, "Window"),
      choice("Window", windows, state.window, (window) => app.set({ window })),
    ];
    const canMake = app.generate && view.generated && state.last && view.words.some((word) => word.label === state.last);
    if (variants.length || canMake) {
      const made = variants.map(([value, label]) =>
        element("button", { type: "button", className: "toggle", "aria-pressed": String(state.beside === value), onclick: () => app.set({ beside: state.beside === value ? "" : value }) }, label));
      const wanted = canMake ? [["without", `Make it without “${state.last}”`], ["swapped", "Make it with the side swapped"]] : [];
      const asked = wanted.filter(([kind]) => kind === "without" || /^(left|right)(#\d+)?$/i.test(state.last));
      const makers = asked.map(([kind, label]) => element("button", { type: "button", onclick: () => app.make({ kind, run: view.id, word: state.last }) }, label));
      rows.push(element("h2", {}, "Same noise, other words"), element("div", { className: "row" }, ...made, ...makers));
      if (state.beside.startsWith("variant"))
        rows.push(element("div", { className: "row" },
          toggle("Difference", "D", state.difference, () => app.set({ difference: !state.difference }), "difference"),
          toggle("Flicker", "F", state.flicker, () => app.set({ flicker: !state.flicker }), "flicker")));
    }
    renew(place, ...rows);
  }

  function bar(table) {
    const canvas = element("canvas", { width: 256, height: 1, className: "ramp", "aria-hidden": "true" });
    const pixels = canvas.getContext("2d").createImageData(256, 1);
    for (let n = 0; n < 256; n++) pixels.data.set([table[3 * n], table[3 * n + 1], table[3 * n + 2], 255], 4 * n);
    canvas.getContext("2d").putImageData(pixels, 0, 0);
    return canvas;
  }

  // One line a layer: name, colors, the values they span; then the unit and whether words share a scale.
  function drawLegend(place, app, layers) {
    const { view, state } = app;
    const units = new Set(layers.map((layer) => layer.unit));
    const said = (unit) => `${unit[0].toUpperCase()}${unit.slice(1)}`;
    const lines = layers.map((layer) => {
      const jump = layer.peak ? element("button", { type: "button", className: "peak", title: "go to where it is highest", "aria-label": `go to the peak of ${layer.label}`, onclick: () => app.go(layer.peak) }, "peak") : null;
      const name = element("span", { className: "name" }, layer.label);
      if (layer.flat) return element("li", { className: "unsure" }, name, element("span", { className: "verdict" }, view.notes.unsure), element("small", {}, "from a word that means nothing here: a faint film, no mask"));
      const low = layer.signed ? `−${short(layer.high)}` : short(layer.from ?? layer.low);
      return element("li", {}, name, jump, bar(layer.bar ?? layer.table), element("small", { className: "range" }, element("span", {}, low), element("span", {}, short(layer.high))), units.size > 1 ? element("small", { className: "unit" }, said(layer.unit)) : null);
    });
    const scale = element("button", { type: "button", className: "toggle", "aria-pressed": String(state.across), onclick: () => app.set({ across: !state.across }) }, "One scale for all words");
    const what = state.across ? "one scale for all words" : "each word on its own scale";
    const text = lines.length
      ? [element("ul", {}, ...lines), element("p", { className: "soft" }, `${units.size > 1 ? "Units as said" : said(layers[0].unit)}; ${what}.`), scale]
      : [element("p", { className: "soft" }, state.hidden ? "Maps are hidden." : "Press a word to see its map; shift-press joins words into one map.")];
    renew(place, element("h2", {}, "Legend"), ...text.filter(Boolean));
  }

  function drawRanking(place, app, words, title) {
    const { view } = app;
    const top = Math.max(...words.map((entry) => entry.value), 1e-12);
    const uniform = view.recipe(app.recipeNow()).uniform;
    const items = words.map((entry) => {
      const name = element("button", { type: "button", onclick: (event) => app.press(entry.word, event.shiftKey) }, entry.word);
      const meter = element("span", { className: "meter" });
      meter.style.setProperty("--share", `${Math.max(0, (100 * entry.value) / top)}%`);
      if (uniform && uniform < top) meter.style.setProperty("--uniform", `${(100 * uniform) / top}%`);
      const value = element("span", { className: "value" }, short(entry.value));
      const made = element("li", { className: entry.sure ? "" : "unsure", title: entry.sure ? "" : view.notes.unsure }, name, meter, value);
      return made;
    });
    const notes = [];
    if (words.some((entry) => !entry.sure)) notes.push(`Dashed words are ${view.notes.unsure} from a word that means nothing here.`);
    if (uniform) notes.push(`The yellow mark is an even spread over the context, ${short(uniform)}.`);
    const below = notes.length ? [element("p", { className: "soft" }, notes.join(" "))] : [];
    renew(place, element("h2", {}, title), element("ol", {}, ...items), ...below);
  }

  const HELP = [
    ["click a word", "show or hide its map (four at once)"],
    ["shift + click", "join words into one map: the mean over those active at a place"],
    ["J", "join the word that has the focus"],
    ["S", "solo: only the last word; again: back"],
    ["H, or hold space", "hide all maps, or peek under them"],
    ["Esc", "take a region away, else all maps"],
    ["E", "attended to / changed / borne out, as measured"],
    ["B", "both side by side"],
    ["O", "outlines only"],
    ["1 2 3", "lung, soft tissue, bone"],
    ["N, P", "next and previous word's peak"],
    ["[ ]", "show less or more of each map"],
    ["wheel, arrows", "scroll slices, move the crosshair"],
    ["D, F", "difference, flicker (where an image without a word was made)"],
    ["R", "research drawer"],
  ];

  function drawHelp(dialog, view) {
    const rows = HELP.flatMap(([keys, text]) => [element("dt", {}, keys), element("dd", {}, text)]);
    const close = element("button", { type: "button", onclick: () => dialog.close() }, "Close");
    const text = "Radiological convention: patient right is on the left of the screen. The bar under a word is its share of the attention. A dashed word cannot be told apart from one that means nothing here, so no mask of it is shown.";
    dialog.replaceChildren(element("h2", {}, "Keys"), element("dl", {}, ...rows), element("p", { className: "soft" }, text), element("p", { className: "soft" }, view.notes.caveat), close);
  }

  Object.assign(V, { drawControls, drawLegend, drawRanking, drawHelp, mainRecipes, recipeLabel, slider, short });
})((window.Voxplain = window.Voxplain || {}));

// For researchers: steps, recipes, special tokens, other runs, regions, code; and the dialog for new runs.
"use strict";
(function (V) {
  const { element, renew, slider } = V;

  const partsOf = (view, recipe) => view.recipes.filter((each) => each.part && each.part.of === recipe).sort((a, b) => a.part.number - b.part.number);

  const layersAlone = (view, recipe) => view.recipes.filter((each) => each.layer && each.layer.of === recipe);

  function section(title, ...children) {
    return element("section", {}, element("h2", {}, title), ...children.filter(Boolean));
  }

  function steps(app) {
    const { view, state } = app;
    const parts = partsOf(view, state.recipe);
    if (!parts.length) return section("Steps", element("p", { className: "soft" }, "No maps of parts of the steps were recorded for this recipe; explain with --per-step 5 to have them."));
    const shown = (number) => (number ? `${number} of ${parts.length}` : "all");
    const move = slider("Part", "part", state.part, [0, parts.length, 1], shown, (part) => app.set({ part, layer: "" }, true));
    const play = element("button", { type: "button", id: "play", "aria-pressed": String(Boolean(app.playing)), onclick: () => app.play() }, app.playing ? "Stop" : "Play");
    return section("Steps", move, play);
  }

  function layers(app) {
    const { view, state } = app;
    const alone = layersAlone(view, state.recipe);
    if (!alone.length) return section("Layers", element("p", { className: "soft" }, "No maps of single layers were recorded for this recipe; explain with --per-layer to have them, or with --layers PATTERN for a run of some layers."));
    const options = [["", "all layers of the recipe"], ...alone.map(({ layer, grid }) => [layer.name, `${layer.name}, ${grid.join(" × ")}`])];
    const chosen = element("select", { id: "layer", onchange: (event) => app.set({ layer: event.target.value, part: 0 }) },
      ...options.map(([value, text]) => element("option", { value, selected: value === state.layer }, text)));
    return section("Layers", element("label", { htmlFor: "layer" }, "Maps of "), chosen);
  }

  function recipes(app) {
    const { view, state } = app;
    const options = V.mainRecipes(view).map((recipe) => element("option", { value: recipe.name, selected: recipe.name === state.recipe }, recipe.name));
    const chosen = element("select", { id: "recipe", onchange: (event) => app.set({ recipe: event.target.value }) }, ...options);
    const recipe = view.recipe(app.recipeNow());
    const listed = recipe.layers.length ? element("details", {}, element("summary", {}, `${recipe.layers.length} layer${recipe.layers.length > 1 ? "s" : ""}`), element("ul", { className: "code" }, ...recipe.layers.map((layer) => element("li", {}, layer)))) : null;
    const facts = element("p", { className: "soft" }, `${recipe.formula}. Source: ${recipe.source}. Grid ${recipe.grid.join(" × ")}.`);
    const specials = element("label", {}, element("input", { type: "checkbox", checked: state.specials, onchange: (event) => app.set({ specials: event.target.checked }) }), " special tokens and padding as words");
    return section("Recipe", element("label", { htmlFor: "recipe" }, "Maps of "), chosen, facts, listed, specials);
  }

  function compare(app) {
    const { view, state } = app;
    const others = app.runs.filter((run) => run.id !== view.id && !run.error);
    if (!others.length) return section("Compare", element("p", { className: "soft" }, "Open several runs, as in voxplain view RUN OTHER, to see two side by side."));
    const options = [["", "nothing"], ...others.map((run) => [`run:${run.id}`, `${run.id}: ${run.prompt.slice(0, 40)}`])];
    const chosen = element("select", { id: "compare", onchange: (event) => app.set({ beside: event.target.value }) },
      ...options.map(([value, text]) => element("option", { value, selected: value === state.beside }, text)));
    const difference = element("label", {}, element("input", { type: "checkbox", checked: state.difference, onchange: (event) => app.set({ difference: event.target.checked }) }), " difference of the maps on the right, each relative to its own maximum");
    return section("Compare", element("label", { htmlFor: "compare" }, "Beside this run "), chosen, state.beside.startsWith("run") ? difference : null);
  }

  function region(app) {
    const start = element("button", { type: "button", onclick: () => app.askRegion() }, app.stage.region ? "Draw another region" : "Draw a region");
    const clear = app.stage.region ? element("button", { type: "button", onclick: () => app.clearRegion() }, "Clear") : null;
    return section("Region", element("p", { className: "soft" }, "Draw around a place on one slice: the words are ranked by their mean in it."), start, clear);
  }

  function code(app) {
    const { view, state } = app;
    const words = state.joined.length > 1 ? state.joined : state.words.length ? state.words.slice(-1) : [];
    const quoted = (text) => JSON.stringify(text);
    const recipe = quoted(app.recipeNow());
    const lines = ["import voxplain", "from voxplain.io.run import load_run", "", `result = load_run(${quoted(app.folder())})`];
    if (words.length === 1) lines.push(`heatmap = result.word(${quoted(words[0])}, recipe=${recipe})`);
    else if (words.length) lines.push(`heatmap = result.attributions[${recipe}].joint([${words.map(quoted).join(", ")}], ${state.top / 100})`);
    if (words.length) lines.push(`mask = voxplain.masks.top_fraction(heatmap, ${words.length > 1 ? 1.0.toFixed(1) : state.top / 100})`);
    const text = lines.join("\n");
    const copy = (what, said) => () => navigator.clipboard.writeText(what()).then(() => app.say(said), () => app.say("the browser does not allow copying here; select the text instead"));
    return section("Code and link", element("pre", { id: "code", tabIndex: 0 }, text),
      element("button", { type: "button", onclick: copy(() => text, "the code is in the clipboard") }, "Copy as Python"),
      element("button", { type: "button", onclick: copy(() => location.href, "the link is in the clipboard") }, "Copy link to this view"));
  }

  function origin(app) {
    const { view } = app;
    const rows = Object.entries(view.facts).flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]);
    const report = view.source.report(view.id);
    return section("How it was made", report ? element("p", {}, element("a", { href: report, target: "_blank", rel: "noopener" }, "the static report"), ", ", element("a", { href: report.replace(/report$/, "file"), download: `${view.id}.html` }, "this page as one file")) : null,
      element("details", {}, element("summary", {}, "all facts"), element("dl", {}, ...rows)));
  }

  function drawDrawer(place, app) {
    place.hidden = !app.state.drawer;
    document.getElementById("drawer-open").setAttribute("aria-expanded", String(app.state.drawer));
    if (place.hidden) return;
    renew(place, steps(app), layers(app), recipes(app), compare(app), region(app), code(app), origin(app));
  }

  function drawNew(dialog, app) {
    const { generate, view } = app;
    const prompt = element("textarea", { id: "new-prompt", rows: 3, maxLength: generate.longest, value: view.prompt });
    const seed = element("input", { id: "new-seed", type: "number", min: 0, max: 2 ** 31 - 1, value: 0 });
    const count = element("input", { id: "new-steps", type: "number", min: 1, max: generate.most_steps, value: generate.steps });
    const start = element("button", { type: "submit", className: "main" }, "Generate");
    const form = element("form", { onsubmit: (event) => {
      event.preventDefault();
      dialog.close();
      app.make({ kind: "run", prompt: prompt.value, seed: Number(seed.value), steps: Number(count.value) });
    } },
      element("h2", {}, "New run"),
      element("p", { className: "soft" }, `By the model ${generate.model}. The run folder stays on this machine's disk, in ${generate.folder}.`),
      element("label", { htmlFor: "new-prompt" }, "What the image should show"), prompt,
      element("div", { className: "row" }, element("label", { htmlFor: "new-seed" }, "Seed"), seed, element("label", { htmlFor: "new-steps" }, "Steps"), count),
      element("div", { className: "row" }, start, element("button", { type: "button", onclick: () => dialog.close() }, "Cancel")));
    dialog.replaceChildren(form);
  }

  // progress of a job, in the message line, with a button to stop it
  function drawProgress(place, facts, stop) {
    const text = facts.total ? `${facts.stage}: ${facts.done} of ${facts.total}` : facts.stage;
    const bar = element("progress", facts.total ? { max: facts.total, value: facts.done } : {});
    place.replaceChildren(element("span", {}, text), bar, element("button", { type: "button", onclick: stop }, "Stop"));
  }

  Object.assign(V, { drawDrawer, drawNew, drawProgress, partsOf, layersAlone });
})((window.Voxplain = window.Voxplain || {}));

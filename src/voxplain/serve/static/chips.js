// The prompt as a line of words to press.
"use strict";
(function (V) {
  const element = (tag, facts = {}, ...children) => {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(facts)) {
      if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
      else if (name in made && name !== "list") made[name] = value;
      else made.setAttribute(name, value);
    }
    made.append(...children.filter((child) => child !== null));
    return made;
  };

  // New children for a place. What had the focus has it again, and what was unfolded is unfolded, by their names.
  function renew(place, ...children) {
    const name = (one) => one.id || one.dataset.word || one.dataset.value || one.dataset.name || one.getAttribute("aria-label") || one.textContent;
    const focused = place.contains(document.activeElement) ? name(document.activeElement) : null;
    const open = new Set([...place.querySelectorAll("details[open] > summary")].map(name));
    place.replaceChildren(...children);
    for (const summary of place.querySelectorAll("summary")) summary.parentElement.open ||= open.has(name(summary));
    if (focused) [...place.querySelectorAll("button, select, input, summary, pre, a")].find((one) => name(one) === focused)?.focus({ preventScroll: true });
  }

  const MOST = 4; // overlays that can be told apart

  // a hue a word: its own by its place, unless another shown word has it
  function hues(view, shown) {
    const order = [...view.entries.keys(), ...view.specials];
    const found = new Map();
    const taken = new Set();
    for (const name of shown) {
      let at = order.indexOf(name) % V.HUES.length;
      for (let n = 0; n < V.HUES.length && taken.has(at); n++) at = (at + 1) % V.HUES.length;
      taken.add(at);
      found.set(name, V.HUES[at]);
    }
    order.forEach((name, n) => found.has(name) || found.set(name, V.HUES[n % V.HUES.length]));
    return found;
  }

  function tip(view, recipe, entry) {
    const facts = entry.recipes[recipe];
    const said = [];
    if (entry.mass != null) said.push(`${(100 * entry.mass).toFixed(1)} % of the attention`);
    if (!facts) said.push("not measured as a whole by this recipe");
    else if (!facts.sure) said.push(`${view.notes.unsure} from a word that means nothing here`);
    if (entry.unknown) said.push("not among the words seen in training");
    return said.join("; ");
  }

  function chip(view, state, colors, entry, text, press) {
    const facts = entry.recipes && entry.recipes[state.recipe];
    const kinds = ["chip"];
    if (facts && !facts.sure) kinds.push("unsure");
    if (entry.recipes && !facts) kinds.push("unmeasured");
    if (entry.unknown) kinds.push("unknown");
    const joined = state.joined.includes(entry.label);
    if (joined) kinds.push("joined");
    const said = entry.recipes ? tip(view, state.recipe, entry) : "";
    const made = element("button", {
      type: "button",
      className: kinds.join(" "),
      title: said,
      "aria-pressed": String(joined || state.words.includes(entry.label)),
      "aria-label": [text, said, joined ? "joined" : ""].filter(Boolean).join(", "),
      "data-word": entry.label,
      onclick: (event) => press(entry.label, event.shiftKey),
    }, text);
    made.style.setProperty("--hue", `rgb(${colors.get(entry.label).join()})`);
    made.style.setProperty("--share", `${Math.round(100 * (entry.strength ?? 0))}%`);
    return made;
  }

  function drawChips(place, view, state, press) {
    const colors = hues(view, state.words);
    const line = element("p", { className: "line" });
    let last = 0;
    for (const entry of view.words) {
      line.append(view.prompt.slice(last, entry.span[0]), chip(view, state, colors, entry, entry.text, press));
      last = entry.span[1];
    }
    line.append(view.prompt.slice(last, view.cut ?? undefined));
    if (view.cut !== null) line.append(element("s", { title: "beyond the context of the model" }, view.prompt.slice(view.cut)));
    const more = element("p", { className: "more" });
    if (view.phrases.length) {
      more.append("measured as a whole: ", ...view.phrases.map((entry) => chip(view, state, colors, entry, entry.label, press)));
    }
    if (state.specials) {
      const known = view.specials.filter((name) => view.has(state.recipe, name));
      const names = known.map((name) => chip(view, state, colors, { label: name }, name.slice(1, -1), press));
      more.append(...(names.length ? [" special tokens: ", ...names] : [" this recipe has no special tokens "]));
    }
    const warnings = view.notes.warnings.map((text) => element("p", { className: "warning" }, text));
    renew(place, line, ...(more.childNodes.length ? [more] : []), ...warnings);
  }

  // What a press on a word does to the state; gives a sentence where it did not do what was asked.
  function pressed(state, name, join) {
    state.last = name;
    state.kept = null;
    if (join) {
      if (state.joined.includes(name)) state.joined = state.joined.filter((each) => each !== name);
      else state.joined = [...(state.joined.length ? state.joined : state.words.filter((each) => each !== name)), name];
      state.words = state.words.filter((each) => !state.joined.includes(each));
      return null;
    }
    if (state.joined.includes(name)) {
      state.joined = state.joined.filter((each) => each !== name);
      return null;
    }
    if (state.words.includes(name)) {
      state.words = state.words.filter((each) => each !== name);
      return null;
    }
    state.words = [...state.words, name];
    if (state.words.length <= MOST) return null;
    const gone = state.words.shift();
    return `${MOST} overlays can be told apart; “${gone}” was taken away`;
  }

  Object.assign(V, { element, renew, hues, drawChips, pressed });
})((window.Voxplain = window.Voxplain || {}));

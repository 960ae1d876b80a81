// A reader study: one case at a time, its questions, and a log of what was looked at. The server alone knows what a case is.
"use strict";
(function (V) {
  const at = (id) => document.getElementById(id);
  const PLANES = ["axial", "coronal", "sagittal"];
  const ARROWS = { ArrowLeft: [0, 0, -1], ArrowRight: [0, 0, 1], ArrowUp: [0, -1, 0], ArrowDown: [0, 1, 0], PageUp: [1, 0, 0], PageDown: [-1, 0, 0] };
  const GLANCE = 0.1; // seconds; places that the crosshair passes faster are not told apart
  const MOST = 20000; // events of a case

  const element = (tag, facts = {}, ...children) => {
    const made = Object.assign(document.createElement(tag), facts);
    made.append(...children);
    return made;
  };

  async function ask(path, sent, options = {}) {
    const posted = sent && { method: "POST", body: JSON.stringify(sent), headers: { "x-voxplain": "1" } };
    const response = await fetch(`api/${path}`, { ...posted, ...options });
    if (response.ok) return response;
    const text = await response.text();
    let detail = text;
    try {
      detail = JSON.parse(text).detail;
    } catch {
      // plain text
    }
    throw Object.assign(new Error(typeof detail === "string" ? detail : `${response.status}`), { status: response.status });
  }

  // radio buttons as a row; `values` are what is sent, `labels` what is read
  function radios(name, values, labels, required, changed) {
    const items = values.map((value, n) => {
      const input = element("input", { type: "radio", name, value: String(value), required });
      input.addEventListener("change", () => changed(value));
      return element("label", {}, input, labels[n]);
    });
    return element("div", { className: "options" }, ...items);
  }

  class Study {
    constructor() {
      this.stage = new V.Stage(at("pane"));
      this.case = null;
    }

    async start() {
      this.facts = await (await ask("study")).json();
      const { title, made } = this.facts;
      document.title = at("title").textContent = title;
      at("made").textContent = made;
      if (!V.supported()) throw new Error("This browser has no WebGL2, which the images need; take another browser.");
      this.listen();
      this.cover();
    }

    // what stands before the first case of a sitting, and after the last one
    cover() {
      const { position, total, instructions } = this.facts;
      const [done, again] = [position >= total, position > 0];
      this.count(position);
      document.querySelector("main").hidden = true;
      at("cover").hidden = false;
      at("cover-title").textContent = done ? "Thank you" : again ? "Welcome back" : this.facts.title;
      at("cover-text").textContent = done ? `All ${total} cases are answered and saved. You may close this page.` : instructions;
      at("begin").hidden = done;
      at("begin").textContent = again ? `Go on with case ${position + 1} of ${total}` : `Begin: ${total} case${total > 1 ? "s" : ""}`;
      document.documentElement.dataset.ready = done ? "done" : "cover";
      if (!done) at("begin").focus();
    }

    count(position) {
      const { total } = this.facts;
      at("count").textContent = position < total ? `Case ${position + 1} of ${total}` : `${total} of ${total}`;
      Object.assign(at("bar"), { max: total, value: position });
    }

    async open(position) {
      if (position >= this.facts.total) return this.cover(Object.assign(this.facts, { position }));
      document.documentElement.dataset.ready = "loading";
      at("cover").hidden = true;
      document.querySelector("main").hidden = false;
      const { stage } = this;
      await stage.start();
      const facts = await (await ask(`cases/${position}`)).json();
      const load = async (part) => (await ask(`cases/${position}/${part}`)).arrayBuffer();
      const [map] = await Promise.all([facts.cells && load("overlay.nii.gz").then(V.read), stage.show(() => load(`image.nii.gz?limit=${stage.limit}`), facts.image, String(position))]);
      const heat = map && new V.Heat(map, facts.cells);
      const layer = heat && { label: "overlay", values: heat.on(stage.grid), low: heat.level(this.facts.top), high: heat.maximum, table: V.hueRamp(V.HUES[0]), hue: V.HUES[0] };
      document.body.classList.toggle("flat", facts.image.ndim === 2);
      const windows = facts.image.windows;
      this.case = { ...facts, position, windows, layers: layer ? [layer] : [], hidden: false, events: [], answers: {}, plane: "", began: performance.now() };
      this.draw();
      this.window(Object.keys(windows)[0]);
      stage.go(facts.image.shape.map((size) => size >> 1));
      this.paint();
      this.case.began = performance.now(); // from here on there is something to see
      this.case.events = [];
      this.log("window", this.case.window);
      this.log("voxel", stage.voxel);
      if (document.hidden) this.log("hidden", null);
      at("heading").focus({ preventScroll: true });
      document.documentElement.dataset.ready = `case ${position}`;
    }

    get seconds() {
      return Math.round(performance.now() - this.case.began) / 1000;
    }

    log(what, value) {
      const { events } = this.case;
      const last = events.at(-1);
      if (what === "voxel" && last?.[1] === "voxel" && (this.seconds - last[0] < GLANCE || String(last[2]) === String(value)) && events.length > 2) last[2] = value;
      else if (events.length < MOST) events.push([this.seconds, what, value]);
    }

    draw() {
      const { questions, prompt, word, windows, position, layers } = this.case;
      this.count(position);
      at("heading").textContent = `Case ${position + 1} of ${this.facts.total}`;
      at("told").hidden = !(prompt || word);
      at("told").textContent = [prompt && `Prompt: ${prompt}`, word && `The overlay is meant to show: ${word}`].filter(Boolean).join("\n");
      at("windows").replaceChildren(...Object.keys(windows).map((name, n) => {
        const button = element("button", { type: "button", title: `key ${n + 1}` }, name);
        button.dataset.window = name;
        button.addEventListener("click", () => this.window(name));
        return button;
      }));
      at("overlay").hidden = !layers.length;
      at("hint").textContent = layers.length ? `Shown is the top ${this.facts.top} % of a map; lighter is higher.` : "This case has no overlay.";
      at("questions").replaceChildren(...questions.map((question, n) => this.fields(question, n)));
      at("form").scrollTop = 0;
    }

    fields(question, n) {
      const { id, text, kind, options, required } = question;
      const said = (answer) => {
        this.case.answers[id] = { ...this.case.answers[id], answer, seconds: this.seconds };
        this.log("answer", id.slice(0, 100));
      };
      const made = element("fieldset", {}, element("legend", {}, text));
      if (kind === "text") {
        const area = element("textarea", { required, maxLength: 4000, rows: 2, ariaLabel: text });
        area.addEventListener("change", () => said(area.value));
        made.append(area);
      }
      if (kind === "choice") made.append(radios(`answer-${n}`, options, options, required, said));
      if (kind === "scale") made.append(this.steps(`answer-${n}`, ...options, required, said));
      if (question.confidence) {
        const sure = (confidence) => (this.case.answers[id] = { ...this.case.answers[id], confidence });
        const row = this.steps(`sure-${n}`, "How sure? a guess", "certain", required, sure);
        row.setAttribute("role", "group");
        row.setAttribute("aria-label", `How sure are you: ${text}`);
        made.append(row);
      }
      return made;
    }

    steps(name, low, high, required, changed) {
      const values = Array.from({ length: this.facts.steps }, (_, n) => n + 1);
      return element("div", { className: "sure" }, element("span", {}, low), radios(name, values, values.map(String), required, changed), element("span", {}, high));
    }

    window(name) {
      this.case.window = name;
      this.stage.window(...this.case.windows[name]);
      for (const button of at("windows").children) button.setAttribute("aria-pressed", String(button.dataset.window === name));
      this.log("window", name);
    }

    overlay(shown) {
      this.case.hidden = !shown;
      this.log("overlay", shown);
      this.paint();
    }

    paint() {
      const { hidden, layers } = this.case;
      at("overlay").setAttribute("aria-pressed", String(!hidden));
      this.stage.paint(hidden ? [] : layers, 0.7, false);
    }

    // while it is saved nothing may be pressed; what fails stays on the page and can be sent again
    async send() {
      const { position, answers, events } = this.case;
      at("next").disabled = true;
      at("message").textContent = "";
      try {
        const saved = await ask(`cases/${position}/answers`, { answers, events, seconds: this.seconds });
        this.case = null;
        await this.open((await saved.json()).position);
      } catch (error) {
        at("message").textContent = this.case ? `Not saved: ${error.message}. Your answers are still here.` : `${error.message}; reload the page`;
      }
      at("next").disabled = false;
    }

    listen() {
      const { stage } = this;
      const canvas = stage.glCanvas;
      const guarded = (work) => () => work().catch((error) => (at("message").textContent = error.message));
      at("begin").addEventListener("click", guarded(() => this.open(this.facts.position)));
      at("form").addEventListener("submit", (event) => {
        event.preventDefault();
        if (this.case && !at("next").disabled) this.send();
      });
      at("overlay").addEventListener("click", () => this.overlay(this.case.hidden));
      stage.moved = (voxel) => this.case && this.log("voxel", voxel);
      for (const kind of ["pointermove", "pointerdown", "wheel"]) canvas.addEventListener(kind, (event) => this.over(event), { passive: true });
      document.addEventListener("keydown", (event) => this.key(event), true);
      document.addEventListener("visibilitychange", () => this.case && this.log(document.hidden ? "hidden" : "shown", null));
      window.addEventListener("pagehide", () => {
        if (!this.case || at("next").disabled) return;
        ask(`cases/${this.case.position}/left`, { events: this.case.events }, { keepalive: true }).catch(() => {});
      });
    }

    // which plane the pointer is on
    over(event) {
      if (!this.case || !this.stage.tiles) return;
      const scale = this.stage.glCanvas.width / this.stage.glCanvas.clientWidth;
      const [x, y] = [event.offsetX * scale, event.offsetY * scale];
      const tile = this.stage.tiles.find((each) => x >= each.left && y >= each.top && x < each.left + each.width && y < each.top + each.height);
      const plane = tile ? (this.case.image.ndim === 2 ? "image" : PLANES[this.stage.nv.screenSlices[tile.number].axCorSag]) : this.case.plane;
      if (plane !== this.case.plane) this.log("plane", (this.case.plane = plane));
    }

    key(event) {
      if (!this.case || event.ctrlKey || event.metaKey || event.altKey || event.target.closest("textarea")) return;
      const name = "123456789".includes(event.key) && Object.keys(this.case.windows)[Number(event.key) - 1];
      const arrow = event.target === this.stage.glCanvas && ARROWS[event.key];
      const peek = event.key.toLowerCase() === "h" && this.case.layers.length;
      if (!name && !arrow && !peek) return;
      event.preventDefault();
      event.stopPropagation(); // NiiVue has keys of its own
      if (name) this.window(name);
      if (peek) this.overlay(this.case.hidden);
      if (arrow) {
        this.stage.go(this.stage.voxel.map((each, axis) => each + arrow[axis]));
        this.log("voxel", this.stage.voxel);
      }
    }
  }

  const study = (V.study = new Study());
  study.start().catch((error) => {
    at("cover-title").textContent = "This does not work";
    at("cover-text").textContent = error.message;
    document.documentElement.dataset.ready = "failed";
  });
})((window.Voxplain = window.Voxplain || {}));

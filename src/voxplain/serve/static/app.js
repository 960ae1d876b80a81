// The page as a whole: one state, what changes it, and what is drawn from it.
"use strict";
(function (V) {
  const at = (id) => document.getElementById(id);
  const FRESH = {
    run: "", recipe: "", words: [], joined: [], hidden: false, top: 25, opacity: 70, outline: false, window: "", across: false,
    beside: "", difference: false, flicker: false, part: 0, layer: "", specials: false, drawer: false, voxel: null,
  };

  class App {
    constructor(source) {
      this.source = source;
      this.views = new Map();
      this.state = { ...FRESH, last: null, kept: null };
      this.stage = new V.Stage(at("pane-left"));
      this.other = new V.Stage(at("pane-right"));
      this.turn = 0;
      this.ranked = { busy: false, wanted: false };
    }

    async start() {
      const listed = await this.source.runs();
      Object.assign(this, listed);
      const good = this.runs.filter((run) => !run.error);
      this.runs.filter((run) => run.error).forEach((run) => this.say(run.error));
      if (!good.length) throw new Error(this.runs.map((run) => run.error).join("; ") || "there is no run to show; make one with voxplain explain");
      this.readLink();
      if (!good.some((run) => run.id === this.state.run)) this.state.run = good[0].id;
      if (!V.supported()) return this.withoutPictures("This browser has no WebGL2, so this is a still picture of the run.");
      await this.stage.start();
      this.stage.moved = (voxel, world) => this.located(this.stage, voxel, world);
      this.other.moved = (voxel, world) => this.located(this.other, voxel, world);
      V.listen(this);
      await this.open(this.state.run);
      document.documentElement.dataset.ready = "yes";
    }

    withoutPictures(text) {
      const place = at("fallback");
      const report = this.source.report(this.state.run);
      document.body.classList.add("static");
      place.hidden = false;
      const still = at("still");
      place.append(V.element("p", {}, text), ...(report ? [V.element("iframe", { src: report, title: "static report" })] : []), ...(still ? [still.content.cloneNode(true)] : []));
      document.documentElement.dataset.ready = "static";
    }

    async viewOf(run) {
      if (!this.views.has(run)) this.views.set(run, V.opened(this.source, run));
      return this.views.get(run);
    }

    async open(run) {
      this.view = await this.viewOf(run);
      const { view, state } = this;
      const linked = state.run === run ? state.voxel : null;
      this.stop();
      this.forgetRegion();
      if (state.run !== run && state.beside.startsWith("variant")) Object.assign(state, { beside: "", flicker: false });
      state.run = run;
      // what words changed points better than where they were attended to (README, "Measured"), so it opens first,
      // unless the run was made to look into attention step by step or layer by layer
      const apart = view.recipes.some((recipe) => recipe.part || recipe.layer);
      if (!view.recipe(state.recipe)) state.recipe = ((!apart && view.recipe("effect")) || view.recipes[0]).name;
      if (!(state.window in view.sample.windows)) state.window = Object.keys(view.sample.windows)[0];
      for (const list of ["words", "joined"]) state[list] = state[list].filter((name) => view.entries.has(name) || view.specials.includes(name));
      await this.stage.show(() => this.source.sample(run, this.stage.limit), view.sample, run);
      document.body.classList.toggle("flat", view.sample.ndim === 2);
      at("notice").textContent = `${view.notes.image} ${view.notes.caveat} Not for diagnosis.`;
      V.drawHeader(this);
      V.drawHelp(at("help"), view);
      this.stage.window(...view.sample.windows[state.window]);
      const best = V.mostDistinct(view, state.recipe);
      if (!state.words.length && !state.joined.length && best) state.words = [best];
      state.last = state.words.at(-1) ?? state.joined.at(-1) ?? null;
      const start = linked ?? (state.last && view.entries.get(state.last)?.recipes[state.recipe]?.peak);
      this.stage.go(start ?? view.sample.shape.map((size) => size >> 1));
      V.flicker(this);
      state.voxel = this.stage.voxel;
      await this.refresh();
      this.rank();
    }

    // the recipe whose maps are shown: the chosen one, or that of some of its steps or of one of its layers
    recipeNow() {
      const { recipe, part, layer } = this.state;
      const found = layer ? V.layersAlone(this.view, recipe).find((each) => each.layer.name === layer) : V.partsOf(this.view, recipe)[part - 1];
      return (found ?? { name: recipe }).name;
    }

    folder() {
      return this.runs.find((run) => run.id === this.view.id)?.folder ?? this.view.id;
    }

    // change the state and show it; `dragged` leaves controls alone, for a slider is being held
    set(change, dragged = false) {
      const before = { ...this.state };
      Object.assign(this.state, change);
      if (before.recipe !== this.state.recipe) {
        this.stop();
        Object.assign(this.state, { part: 0, layer: "" });
      }
      if ("window" in change) for (const stage of [this.stage, this.other]) if (stage.ready) stage.window(...this.view.sample.windows[this.state.window]);
      if (before.flicker !== this.state.flicker || before.beside !== this.state.beside) V.flicker(this);
      return this.refresh(dragged);
    }

    press(name, join) {
      const said = V.pressed(this.state, name, join);
      if (said) this.say(said);
      this.state.hidden = false;
      return this.refresh();
    }

    go(voxel) {
      this.stage.go(voxel);
      this.located(this.stage, this.stage.voxel, this.stage.world(this.stage.voxel));
    }

    located(stage, voxel, world) {
      if (stage === this.stage) this.state.voxel = voxel;
      const twin = stage === this.stage ? this.other : this.stage;
      if (twin.ready && !at("pane-right").hidden) {
        twin.goWorld(world);
        if (twin === this.stage) this.state.voxel = twin.voxel;
      }
      this.rank();
      this.writeLink();
    }

    // ranked words at the crosshair; while one answer is awaited only the latest place is kept
    async rank() {
      if (this.stage.region || !this.view || !this.stage.ready) return;
      if (this.ranked.busy) return void (this.ranked.wanted = true);
      this.ranked = { busy: true, wanted: false };
      const [view, recipe, voxel] = [this.view, this.recipeNow(), this.stage.voxel];
      try {
        const words = await this.source.at(view, recipe, voxel);
        const place = this.stage.world(voxel).map((each, axis) => (axis < 2 ? -each : each)).slice(0, view.sample.ndim);
        const value = view.sample.spacing_known ? ` (${place.map((each) => each.toFixed(0)).join(", ")}) mm LPS` : "";
        if (view === this.view && !this.stage.region) V.drawRanking(at("ranking"), this, words, `Words at the crosshair${value}`);
        this.rankedAt = voxel.join();
      } catch (error) {
        this.say(error.message);
      }
      const again = this.ranked.wanted;
      this.ranked = { busy: false, wanted: false };
      if (again) this.rank();
    }

    // draw everything from the state; an older call that is overtaken gives up
    async refresh(dragged = false) {
      const turn = (this.turn += 1);
      const { view, state } = this;
      try {
        const layers = await V.layersOf(view, this.recipeNow(), state, this.stage.grid);
        if (turn !== this.turn) return;
        this.stage.paint(state.hidden ? [] : layers, state.opacity / 100, state.outline);
        if (!dragged) {
          V.drawChips(at("prompt"), view, state, (name, join) => this.press(name, join));
          V.drawControls(at("controls"), this);
          V.drawDrawer(at("drawer"), this);
        }
        this.layers = state.hidden ? [] : layers;
        V.drawLegend(at("legend"), this, this.layers);
        await V.showBeside(this, turn);
        this.writeLink();
        if (this.rankedFor !== `${state.run}/${this.recipeNow()}`) {
          this.rankedFor = `${state.run}/${this.recipeNow()}`;
          this.rank();
        }
      } catch (error) {
        this.say(error.message);
      }
    }

    sideBySide() {
      const other = V.mainRecipes(this.view).find((recipe) => !recipe.statistic && recipe.name !== this.state.recipe);
      if (!other) return this.say("this run has one recipe only");
      return this.set({ beside: this.state.beside.startsWith("recipe") ? "" : `recipe:${other.name}` });
    }

    play() {
      if (this.playing) {
        this.stop();
        return this.set({ part: 0 });
      }
      const count = V.partsOf(this.view, this.state.recipe).length;
      this.playing = setInterval(() => this.set({ part: (this.state.part % count) + 1 }), 700);
      return this.set({ part: 1, layer: "" });
    }

    stop() {
      clearInterval(this.playing);
      this.playing = null;
    }

    askRegion() {
      this.say("draw around a place on one of the slices; Esc leaves it");
      at("views").scrollIntoView({ block: "nearest" }); // the drawer lies below it
      this.stage.askRegion(async (bits) => {
        try {
          const found = await this.source.region(this.view, this.recipeNow(), bits);
          V.drawRanking(at("ranking"), this, found.words, `Words in the region (${found.voxels} voxels)`);
          this.say("");
        } catch (error) {
          this.forgetRegion();
          this.say(error.message);
        }
        V.drawDrawer(at("drawer"), this);
      });
    }

    forgetRegion() {
      this.stage.endRegion();
      this.stage.region = null;
    }

    clearRegion() {
      this.forgetRegion();
      this.stage.nv.drawScene();
      V.drawDrawer(at("drawer"), this);
      this.rank();
    }

    // a new run, or an image made again with other words; the page opens what comes of it
    async make(wanted) {
      try {
        const { job } = await this.source.start(wanted);
        this.source.follow(job, async (facts) => {
          if (facts.error || facts.stopped) return this.say(facts.error ?? "stopped; nothing half-written is left");
          if (!facts.run) return V.drawProgress(at("message"), facts, () => this.source.stop(job));
          this.say(`${facts.run} is ready`);
          this.views.delete(facts.run);
          this.runs = (await this.source.runs()).runs;
          if (wanted.kind === "run") Object.assign(this.state, FRESH, { drawer: this.state.drawer });
          await this.open(facts.run);
          const number = this.view.variants.findIndex((made) => made.kind === wanted.kind && made.word === wanted.word);
          if (number >= 0) this.set({ beside: `variant:${number}`, difference: true });
        });
      } catch (error) {
        this.say(error.message);
      }
    }

    // a sentence for a while
    say(text) {
      at("message").textContent = text;
      clearTimeout(this.saying);
      this.saying = setTimeout(() => at("message").textContent === text && at("message").replaceChildren(), 8000);
    }

    writeLink() {
      const kept = new URLSearchParams();
      for (const [name, fresh] of Object.entries(FRESH)) {
        const value = this.state[name];
        if (JSON.stringify(value) !== JSON.stringify(fresh) && name !== "hidden") kept.set(name, Array.isArray(fresh) || name === "voxel" ? JSON.stringify(value) : String(value));
      }
      clearTimeout(this.linking);
      this.linking = setTimeout(() => {
        try {
          history.replaceState(null, "", `#${kept}`);
        } catch {
          // a page inside a notebook has no address of its own
        }
      }, 150);
    }

    readLink() {
      const kept = new URLSearchParams(location.hash.slice(1));
      for (const [name, fresh] of Object.entries(FRESH)) {
        const text = kept.get(name);
        if (text === null) continue;
        try {
          if (Array.isArray(fresh)) this.state[name] = JSON.parse(text).map(String);
          else if (name === "voxel") this.state[name] = JSON.parse(text).map(Number);
          else if (typeof fresh === "number") this.state[name] = Math.min(Math.max(Number(text) || 0, 0), 100);
          else this.state[name] = typeof fresh === "boolean" ? text === "true" : text;
        } catch {
          this.say(`the link's ${name} is damaged and was left out`);
        }
      }
    }
  }

  async function begin() {
    const app = (V.app = new App(V.source()));
    try {
      await app.start();
    } catch (error) {
      app.say(error.message);
      document.documentElement.dataset.ready = "failed";
    }
  }

  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", begin);
  else begin();
})((window.Voxplain = window.Voxplain || {}));

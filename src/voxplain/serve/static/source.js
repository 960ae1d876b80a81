// Where runs come from: a server, or this very file. Both answer the same questions.
"use strict";
(function (V) {
  const failed = async (response) => {
    const said = await response.text(); // JSON by the routes, plain text by what stands before them
    let text = said;
    try {
      text = JSON.parse(said).detail;
    } catch {
      // plain text
    }
    return new Error(typeof text === "string" && text ? text : `${response.status} ${response.statusText}`);
  };

  class ServerSource {
    constructor(root = "") {
      this.root = root;
    }

    async get(path, options = {}) {
      const response = await fetch(`${this.root}api/${path}`, options);
      if (!response.ok) throw await failed(response);
      return response;
    }

    async json(path, options) {
      return (await this.get(path, options)).json();
    }

    runs() {
      return this.json("runs");
    }

    case(run) {
      return this.json(`runs/${run}/case`);
    }

    async sample(run, limit) {
      return (await this.get(`runs/${run}/sample.nii.gz?limit=${limit}`)).arrayBuffer();
    }

    async map(run, recipe, name) {
      const query = new URLSearchParams({ recipe, name });
      return (await this.get(`runs/${run}/map.nii.gz?${query}`)).arrayBuffer();
    }

    async variant(run, number, part, limit) {
      return (await this.get(`runs/${run}/variants/${number}/${part}.nii.gz?limit=${limit}`)).arrayBuffer();
    }

    async at(view, recipe, voxel) {
      const query = new URLSearchParams({ recipe, voxel: voxel.join() });
      return (await this.json(`runs/${view.id}/at?${query}`)).words;
    }

    // bits: one a voxel of the sample
    async region(view, recipe, bits) {
      const options = { method: "POST", body: bits, headers: { "x-voxplain": "1" } };
      return this.json(`runs/${view.id}/region?${new URLSearchParams({ recipe })}`, options);
    }

    start(wanted) {
      const options = { method: "POST", body: JSON.stringify(wanted), headers: { "x-voxplain": "1" } };
      return this.json("generate", options);
    }

    stop(job) {
      return this.json(`jobs/${job}`, { method: "DELETE", headers: { "x-voxplain": "1" } });
    }

    follow(job, heard) {
      const events = new EventSource(`${this.root}api/jobs/${job}`);
      events.onmessage = (event) => {
        const facts = JSON.parse(event.data);
        if (facts.run || facts.error || facts.stopped) events.close();
        heard(facts);
      };
      events.onerror = () => {
        events.close();
        heard({ error: "the connection to the server was lost; the run goes on there" });
      };
    }

    report(run) {
      return `${this.root}runs/${run}/report`;
    }
  }

  const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer;

  // everything in the page: one run, its maps by "recipe/word"
  class FileSource {
    constructor(data, volumes) {
      this.data = data;
      this.volumes = volumes;
    }

    async runs() {
      return { runs: [{ id: this.data.id, prompt: this.data.prompt }], generate: null };
    }

    async case() {
      return this.data;
    }

    async named(name) {
      if (!(name in this.volumes)) throw new Error(`this page does not hold ${name}`);
      return bytes(this.volumes[name]);
    }

    sample() {
      return this.named("sample");
    }

    map(run, recipe, name) {
      return this.named(`${recipe}/${name}`);
    }

    variant(run, number, part) {
      return this.named(`variant/${number}/${part}`);
    }

    async ranked(view, recipe, mean) {
      const known = view.words.filter((word) => recipe in word.recipes);
      const found = known.map(async (word) => {
        const heat = await view.heat(recipe, word.label);
        return { word: word.label, value: mean(heat), sure: word.recipes[recipe].sure };
      });
      return (await Promise.all(found)).sort((a, b) => b.value - a.value);
    }

    at(view, recipe, voxel) {
      return this.ranked(view, recipe, (heat) => heat.at(voxel));
    }

    async region(view, recipe, bits) {
      const [, rows, columns] = view.sample.shape;
      const inside = [];
      for (let n = 0; n < bits.length * 8; n++)
        if (bits[n >> 3] & (128 >> (n & 7))) inside.push([Math.floor(n / (rows * columns)), Math.floor(n / columns) % rows, n % columns]);
      if (!inside.length) throw new Error("the region is empty; draw some voxels");
      const mean = (heat) => inside.reduce((total, voxel) => total + heat.at(voxel), 0) / inside.length;
      return { words: await this.ranked(view, recipe, mean), voxels: inside.length };
    }

    report() {
      return null;
    }
  }

  // A run as the page works with it: what describe() says, and maps that are asked for once.
  class View {
    constructor(source, facts) {
      Object.assign(this, facts);
      this.source = source;
      this.heats = new Map();
      this.entries = new Map([...facts.words, ...facts.phrases].map((entry) => [entry.label, entry]));
    }

    recipe(name) {
      return this.recipes.find((recipe) => recipe.name === name);
    }

    // whether this recipe tells the word apart from one that means nothing
    sure(recipe, name) {
      const known = this.entries.get(name);
      return !known || !(recipe in known.recipes) || known.recipes[recipe].sure;
    }

    // null where a phrase was not measured by this recipe
    has(recipe, name) {
      const known = this.entries.get(name);
      return known ? recipe in known.recipes : this.specials.includes(name) && this.recipe(recipe).specials;
    }

    heat(recipe, name) {
      const key = `${recipe}/${name}`;
      if (!this.heats.has(key)) {
        const cells = this.recipe(recipe).cells;
        const loading = this.source.map(this.id, recipe, name).then(V.read).then((file) => new V.Heat(file, cells));
        loading.catch(() => this.heats.delete(key));
        this.heats.set(key, loading);
      }
      return this.heats.get(key);
    }

    // the difference of an image made again, kept under its name
    difference(number, name) {
      const same = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]];
      if (!this.heats.has(name)) this.heats.set(name, this.source.variant(this.id, number, "difference", 512).then(V.read).then((file) => new V.Heat(file, same)));
      return this.heats.get(name);
    }
  }

  async function opened(source, run) {
    return new View(source, await source.case(run));
  }

  function source() {
    const block = (name) => JSON.parse(document.getElementById(name).textContent);
    return document.getElementById("data-case") ? new FileSource(block("data-case"), block("data-volumes")) : new ServerSource();
  }

  Object.assign(V, { source, opened });
})((window.Voxplain = window.Voxplain || {}));

"use strict";
// Shows the structures, whose data stand in the page as JSON. The viewer is large: its
// script and the data are read when its place comes near the view, or at a first click.
const uq = {
  data(id) {
    const holder = document.getElementById(id);
    return holder ? JSON.parse(holder.textContent) : null;
  },
  dark: window.matchMedia("(prefers-color-scheme: dark)"),
  // Calls an action once, when an element is less than half a screen away.
  near(element, action) {
    const watch = new IntersectionObserver((seen) => {
      if (seen.some((one) => one.isIntersecting)) { watch.disconnect(); action(); }
    }, { rootMargin: "50% 0px" });
    watch.observe(element);
  },
  // Runs the script of chemiscope once. It stands in the page as text, or has an address.
  chemiscope() {
    uq.script ??= new Promise((done, failed) => {
      const holder = document.getElementById("chemiscope");
      const script = document.createElement("script");
      script.src = holder.dataset.address
        ?? URL.createObjectURL(new Blob([holder.textContent], { type: "text/javascript" }));
      script.onload = done;
      script.onerror = () => failed(new Error("the script of chemiscope cannot be read"));
      document.head.append(script);
    });
    return uq.script;
  },
  say(state, text) {
    document.documentElement.dataset.viewer = state;
    document.getElementById("uq-state").textContent = text;
  },
  // Returns the viewer of some structures; null, and a sentence in the page, if it fails.
  async showStructures(dataset) {
    uq.say("loading", "The viewer is loading.");
    await new Promise((done) => setTimeout(done, 50)); // the sentence is drawn first
    const places = { info: "uq-info", meta: "uq-meta", structure: "uq-structure" };
    const map = document.getElementById("uq-map");
    if (map) { places.map = map.id; }
    try {
      await uq.chemiscope();
      const kind = map ? Chemiscope.DefaultVisualizer : Chemiscope.StructureVisualizer;
      const viewer = await kind.load(places, dataset, new Chemiscope.Warnings());
      uq.say("shown", "");
      return viewer;
    } catch (error) {
      uq.say("failed", `The structures cannot be shown: ${error.message}`);
      return null;
    }
  },
  // Loads the viewer of the page once; the data say which structure it shows first.
  async open() {
    uq.loading ??= uq.showStructures(uq.data("dataset"));
    uq.viewer = await uq.loading;
  },
  // Shows one structure of the page; loads the viewer before, if need be.
  async show(place) {
    await uq.open();
    const where = uq.viewer?.indexer.fromStructure(place, "structure");
    if (where !== undefined) { uq.viewer.select(where); }
  },
  offerStructures() {
    for (const button of document.querySelectorAll("button[data-structure]")) {
      button.addEventListener("click", () => uq.show(Number(button.dataset.structure)));
    }
    uq.near(document.getElementById("uq-structure"), uq.open);
  },
};

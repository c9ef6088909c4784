"use strict";
// Shows the structures, whose data stand in the page as JSON.
const uq = {
  data(id) {
    const holder = document.getElementById(id);
    return holder ? JSON.parse(holder.textContent) : null;
  },
  dark: window.matchMedia("(prefers-color-scheme: dark)"),
  async showStructures(dataset, name = "DefaultVisualizer") {
    const warnings = new Chemiscope.Warnings();
    const places = name === "DefaultVisualizer"
      ? { map: "uq-map", info: "uq-info", meta: "uq-meta", structure: "uq-structure" }
      : { info: "uq-info", meta: "uq-meta", structure: "uq-structure" };
    return Chemiscope[name].load(places, dataset, warnings);
  },
  // The viewer and its buttons; the first button's structure is shown.
  async startViewer(name) {
    uq.viewer = await uq.showStructures(uq.data("dataset"), name);
    uq.show = (place) => {
      const where = uq.viewer.indexer.fromStructure(place, "structure");
      if (where !== undefined) { uq.viewer.select(where); }
    };
    for (const button of document.querySelectorAll("button[data-structure]")) {
      button.addEventListener("click", () => uq.show(Number(button.dataset.structure)));
    }
    const first = document.querySelector("button[data-structure]");
    if (first) { first.click(); }
    document.documentElement.dataset.ready = "yes";
  },
};

"use strict";
// Asks for the state of the runs every second, and draws what has changed.
const live = { sections: new Map(), shown: null, figures: new Map() };

live.fetch = async (path) => {
  const answer = await fetch(path, { cache: "no-store" });
  if (!answer.ok) { throw new Error(`${path}: ${answer.status}`); }
  return answer.json();
};

live.section = (run) => {
  let found = live.sections.get(run.number);
  if (!found) {
    const copy = document.getElementById("run").content.cloneNode(true);
    found = { root: copy.querySelector("section"), version: -1 };
    for (const name of ["name", "status", "level", "why", "numbers", "notes", "plot"]) {
      found[name] = copy.querySelector(`.${name}`);
    }
    found.name.addEventListener("click", () => live.choose(run.number));
    document.getElementById("runs").append(copy);
    live.sections.set(run.number, found);
  }
  return found;
};

live.numbers = (run) => {
  const parts = [];
  if (run.step !== null) { parts.push(`step ${run.step}`); }
  if (run.time_ps !== null) { parts.push(`${run.time_ps.toPrecision(4)} ps`); }
  if (run.rate !== null) { parts.push(`${run.rate.toPrecision(3)} steps/s`); }
  if (run.left_s !== null) { parts.push(`${Math.ceil(run.left_s / 60)} min left`); }
  return parts.join(", ");
};

live.write = async (run) => {
  const section = live.section(run);
  section.name.textContent = run.name;
  section.status.textContent = run.status;
  section.status.className = "status" + (run.status === "halted" ? " UNRELIABLE" : " quiet");
  section.level.textContent = run.level ?? "";
  section.level.className = `level ${run.level ?? ""}`;
  section.why.textContent = run.why;
  section.numbers.textContent = live.numbers(run);
  section.notes.textContent = run.notes.join(" ");
  section.notes.hidden = run.notes.length === 0;
  if (run.version !== section.version) {
    const figure = await live.fetch(`/timeline/${run.number}`);
    if (figure !== null) {
      await uq.plot(section.plot, figure);
      live.figures.set(run.number, figure);
    }
    section.version = run.version;
  }
};

live.choose = (number) => { live.shown = { number, version: null }; };

live.showStructure = async (runs) => {
  live.shown ??= { number: 0, version: null };
  const run = runs[live.shown.number];
  if (!run || !run.structure || run.structure === live.shown.version) { return; }
  live.shown.version = run.structure;
  const found = await live.fetch(`/structure/${run.number}`);
  if (found === null) { return; }
  document.getElementById("structure").hidden = false;
  const step = found.step === null ? "" : `, step ${found.step}`;
  document.getElementById("structure-text").textContent =
    `${run.name}${step}: the last frame of ${found.file}. ` +
    "The name of a run above chooses whose structure is shown.";
  const box = document.getElementById("viewer-box");
  live.viewer?.remove();
  box.innerHTML = '<div id="uq-structure" class="pane"></div>' +
    '<div id="uq-info" class="meta"></div><div id="uq-meta" class="meta"></div>';
  live.viewer = await uq.showStructures(found.dataset);
};

live.look = async () => {
  const line = document.getElementById("connection");
  try {
    const state = await live.fetch("/state");
    line.textContent = state.runs.length
      ? `${state.place}: ${state.runs.length} run(s)`
      : `${state.place}: no event log (*.jsonl) yet`;
    for (const run of state.runs) { await live.write(run); }
    await live.showStructure(state.runs);
    document.documentElement.dataset.ready = "yes";
  } catch (error) {
    line.textContent = `No answer: uqcalc watch has ended, or is busy (${error.message}).`;
  }
  setTimeout(live.look, 1000);
};

uq.dark.addEventListener("change", () => {
  for (const [number, figure] of live.figures) {
    uq.plot(live.sections.get(number).plot, figure);
  }
});
live.look();

// Draws the figures, whose data stand in the page as JSON.
Object.assign(uq, {
  // chemiscope has a plotly of its own, and takes its style out of the page by this name.
  keepStyle() {
    const style = document.getElementById("plotly.js-style-global");
    if (style) { style.id = "uq-plotly-style"; }
  },
  // The figures come in the colours of the light page. The names of the levels are
  // words, whose colours are lighter on a dark page; bands and marks keep theirs.
  coloured(figure) {
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(name).trim();
    const found = JSON.parse(JSON.stringify(figure)
      .replaceAll('"#222222"', JSON.stringify(colour("--ink")))
      .replaceAll('"#8a8a8a"', JSON.stringify(colour("--quiet"))));
    const words = { "#2c6e9e": "--reliable", "#8a6414": "--suspect", "#b3312c": "--unreliable" };
    for (const { font } of found.layout.annotations ?? []) {
      if (font.color in words) { font.color = colour(words[font.color]); }
    }
    return found;
  },
  plot(element, figure) {
    const { data, layout } = uq.coloured(figure);
    if (element.clientWidth < 560) {
      layout.margin = { ...layout.margin, l: 62, r: 6 };
      layout.font = { ...layout.font, size: 11 };
    }
    return Plotly.react(element, data, layout, { responsive: true, displayModeBar: false });
  },
  // Draws the first figure at once, and each other one when it comes near the view.
  drawAll() {
    const all = [...document.querySelectorAll(".plot[data-figure]")];
    const draw = async (element) => {
      const isNew = !element.layout;
      await uq.plot(element, uq.data(element.dataset.figure));
      if (isNew) { element.on("plotly_click", (event) => uq.showNear(element, event)); }
    };
    draw(all[0]);
    for (const element of all.slice(1)) { uq.near(element, () => draw(element)); }
    uq.dark.addEventListener("change", () => all.filter((one) => one.layout).forEach(draw));
    window.addEventListener("beforeprint", () => all.forEach(draw));
  },
  // Shows the saved structure of the same run that is nearest to a clicked point.
  async showNear(element, event) {
    const saved = uq.data("saved")?.[element.dataset.run] ?? [];
    if (saved.length === 0) { return; }
    const away = ([x]) => Math.abs(x - event.points[0].x);
    const [, place] = saved.reduce((a, b) => (away(b) < away(a) ? b : a));
    document.getElementById("structures").scrollIntoView();
    await uq.show(place);
  },
});

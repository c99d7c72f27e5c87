for (const figure of document.querySelectorAll("figure.chart")) {
  const svg = figure.querySelector("svg"), tip = figure.querySelector(".tip"), cursor = figure.querySelector(".cursor");
  const curves = [...svg.querySelectorAll("polyline[data-told]")].map((curve) => ({
    name: curve.dataset.name,
    told: curve.dataset.told.split(" ").map((pair) => pair.split(":")),
    xs: [...curve.points].map((point) => point.x),
  }));
  const nearest = (xs, x) => {
    let low = 0, high = xs.length - 1;
    while (high - low > 1) { const middle = (low + high) >> 1; if (xs[middle] < x) low = middle; else high = middle; }
    return Math.abs(xs[low] - x) <= Math.abs(xs[high] - x) ? low : high;
  };
  svg.addEventListener("pointermove", (event) => {
    const matrix = svg.getScreenCTM();
    if (!matrix || !curves.length) return;
    const x = (event.clientX - matrix.e) / matrix.a;
    const first = curves[0], at = nearest(first.xs, x);
    const lines = ["step " + first.told[at][0]];
    for (const curve of curves) {
      const [step, value] = curve.told[nearest(curve.xs, x)];
      lines.push(curve.name + " " + value + (step === first.told[at][0] ? "" : " (step " + step + ")"));
    }
    cursor.setAttribute("x1", first.xs[at]);
    cursor.setAttribute("x2", first.xs[at]);
    cursor.style.visibility = "visible";
    tip.textContent = lines.join("\n");
    tip.hidden = false;
    const box = figure.getBoundingClientRect(), left = first.xs[at] * matrix.a + matrix.e - box.left;
    tip.style.left = Math.max(4, left + 14 + tip.offsetWidth > box.width ? left - 14 - tip.offsetWidth : left + 14) + "px";
    tip.style.top = event.clientY - box.top - 20 + "px";
  });
  svg.addEventListener("pointerleave", () => { tip.hidden = true; cursor.style.visibility = "hidden"; });
}

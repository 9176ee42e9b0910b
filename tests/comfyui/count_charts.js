// How many panels are in memory, and how many redraw when the page changes. Run before the page's own scripts.
{
  const charts = [];
  const redrawn = new Set();
  const redraws = new MutationObserver((changes) => changes.forEach((change) => redrawn.add(change.target)));
  const observe = ResizeObserver.prototype.observe;
  ResizeObserver.prototype.observe = function (element, ...rest) {
    if (element.className === "u1-chart") {
      charts.push(new WeakRef(element));
      redraws.observe(element, { attributeFilter: ["aria-label"] });
    }
    return observe.call(this, element, ...rest);
  };
  const frames = async () => {
    for (let frame = 0; frame < 3; frame++) await new Promise(requestAnimationFrame);
  };
  window.keptCharts = () => charts.filter((chart) => chart.deref()).length;
  window.redrawnCharts = async () => {
    await frames();
    redrawn.clear();
    document.body.classList.toggle("a-change");
    await frames();
    const count = redrawn.size;
    redrawn.clear();
    return count;
  };
}

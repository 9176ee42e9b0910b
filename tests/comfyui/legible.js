// How well a panel reads: run in the page, on the panel's element.
(panel) => {
  const rgb = (colour) => (colour.match(/[\d.]+/g) ?? []).map(Number);
  const linear = (channel) => (channel / 255 <= 0.03928 ? channel / 255 / 12.92 : ((channel / 255 + 0.055) / 1.055) ** 2.4);
  const luminance = ([red, green, blue]) => 0.2126 * linear(red) + 0.7152 * linear(green) + 0.0722 * linear(blue);
  /** As WCAG 2 defines it: 1 to 21. */
  const contrast = (...colours) => {
    const [darker, lighter] = colours.map(luminance).sort((one, other) => one - other);
    return (lighter + 0.05) / (darker + 0.05);
  };
  const behind = (element) => {
    for (let each = element; each; each = each.parentElement) {
      const colour = rgb(getComputedStyle(each).backgroundColor);
      if (colour.length && (colour[3] ?? 1) > 0.5) return colour;
    }
    return [255, 255, 255];
  };
  const written = [...panel.querySelectorAll("*")].filter(
    (each) => each.checkVisibility() && [...each.childNodes].some((node) => node.nodeType === 3 && node.data.trim()),
  );
  const canvas = panel.querySelector("canvas");
  const paper = behind(canvas);
  const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  const axis = (48 * canvas.width) / canvas.clientWidth; // left of it are numbers and nothing else
  let onChart = 0;
  for (let at = 0; at < pixels.length; at += 4) {
    if ((at / 4) % canvas.width < axis && pixels[at + 3] > 240) onChart = Math.max(onChart, contrast(pixels.slice(at, at + 3), paper));
  }
  return {
    contrast: Math.min(onChart, ...written.map((each) => contrast(rgb(getComputedStyle(each).color), behind(each)))),
    on_chart: onChart,
    text_px: Math.min(...written.map((each) => parseFloat(getComputedStyle(each).fontSize))),
    too_wide: panel.scrollWidth - panel.clientWidth,
    sharpness: canvas.width / (canvas.getBoundingClientRect().width * devicePixelRatio),
  };
}

// A run's curves on a canvas: loss by step, its moving mean, and validation as a share of the untrained model.

import { say } from "./words.js";

const PAD = { left: 52, right: 44, top: 18, bottom: 22 };
const SMOOTHED_OVER = 20;

/** The mean of each value with those before it, over a twentieth of them all. */
export function movingMeans(values) {
  const over = Math.max(1, Math.floor(values.length / SMOOTHED_OVER));
  let total = 0;
  return values.map((value, index) => {
    total += value - (index >= over ? values[index - over] : 0);
    return total / Math.min(index + 1, over);
  });
}

/** Of as many numbers as there are: as arguments of Math.max they would have to fit on the stack. */
const greatest = (values) => values.reduce((most, value) => Math.max(most, value), 0);

/** Colours for the page the canvas is on: dark ink means a light page, where lines have to be dark too. */
function palette(canvas) {
  const style = getComputedStyle(canvas);
  const ink = style.color;
  const [red, green, blue] = ink.match(/[\d.]+/g).map(Number);
  const onLight = 0.3 * red + 0.6 * green + 0.1 * blue < 128;
  const [loss, validation] = onLight ? ["#0b56b3", "#8f4a00"] : ["#5aa2ff", "#f5a524"];
  return { ink, grid: style.getPropertyValue("--border-color").trim() || "#8884", loss, validation };
}

/** Draw `points` [[step, loss]] and `marks` [{step, percent}] to fill the canvas at its size on the page. */
export function drawChart(canvas, points, marks) {
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  if (!width || !height) return;
  const zoom = canvas.getBoundingClientRect().width / width; // of the graph around a node
  const ratio = (window.devicePixelRatio || 1) * Math.max(1, zoom);
  canvas.width = width * ratio;
  canvas.height = height * ratio;
  const ink = canvas.getContext("2d");
  ink.scale(ratio, ratio);
  const colours = palette(canvas);
  ink.font = "12px sans-serif";
  ink.fillStyle = colours.ink;
  if (!points.length) {
    ink.fillText(say("no steps yet"), PAD.left, height / 2);
    return;
  }
  const means = movingMeans(points.map(([, loss]) => loss));
  const first = points[0][0];
  const last = Math.max(points.at(-1)[0], first + 1);
  const top = 1.15 * greatest(means) || 1;
  const validations = marks.filter((mark) => "percent" in mark && mark.step >= first);
  const most = Math.max(100, greatest(validations.map((mark) => mark.percent))) * 1.05;
  const x = (step) => PAD.left + ((width - PAD.left - PAD.right) * (step - first)) / (last - first);
  const y = (share) => PAD.top + (height - PAD.top - PAD.bottom) * (1 - Math.min(1, share));

  for (let part = 0; part <= 4; part++) {
    const share = part / 4;
    ink.strokeStyle = colours.grid;
    line(ink, [[PAD.left, y(share)], [width - PAD.right, y(share)]], 1);
    ink.textAlign = "right";
    ink.fillText(Number((top * share).toPrecision(2)), PAD.left - 6, y(share) + 4);
    ink.textAlign = "center";
    const step = Math.round(first + (last - first) * share);
    ink.fillText(step, x(step), height - 6);
    if (validations.length) {
      ink.textAlign = "left";
      ink.fillText(`${Math.round(most * share)}%`, width - PAD.right + 6, y(share) + 4);
    }
  }
  legend(ink, say("loss"), "left", PAD.left, colours.loss);
  if (validations.length) legend(ink, say("validation, % of base"), "right", width - PAD.right, colours.validation);
  ink.globalAlpha = 0.3;
  ink.strokeStyle = colours.loss;
  line(ink, points.map(([step, loss]) => [x(step), y(loss / top)]), 1);
  ink.globalAlpha = 1;
  line(ink, points.map(([step], index) => [x(step), y(means[index] / top)]), 2);
  ink.strokeStyle = ink.fillStyle = colours.validation;
  const dots = validations.map((mark) => [x(mark.step), y(mark.percent / most)]);
  line(ink, dots, 1.5);
  for (const [dotX, dotY] of dots) {
    ink.beginPath();
    ink.arc(dotX, dotY, 3, 0, 2 * Math.PI);
    ink.fill();
  }
}

function legend(ink, words, side, x, colour) {
  ink.fillStyle = colour;
  ink.textAlign = side;
  ink.fillText(words, x, PAD.top - 6);
}

function line(ink, places, width) {
  ink.lineWidth = width;
  ink.beginPath();
  for (const [x, y] of places) ink.lineTo(x, y);
  ink.stroke();
}

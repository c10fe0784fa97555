// How many images wait and how full the batches are, from /metrics, a look a second while the page is seen.

const KEPT = 120;
const LINE = /^(fastddpm_\w+)\{model="((?:[^"\\]|\\.)*)"\} (\S+)$/gm;
const HEIGHT = 40;

/** Keeps the two plots of a model up to date. name: gives the model that is looked at. */
export function plotLoad(name) {
  const seen = { model: null, rows: [] };
  const look = async () => {
    if (document.hidden) return;
    const answer = await fetch("/metrics").catch(() => null);
    if (!answer?.ok) return;
    if (seen.model !== name()) Object.assign(seen, { model: name(), rows: [] });
    seen.rows.push(gaugesOf(await answer.text(), seen.model));
    seen.rows.splice(0, seen.rows.length - KEPT);
    drawn(seen.rows);
  };
  look();
  setInterval(look, 1000);
}

/** The gauges of a model in the text format of Prometheus. */
function gaugesOf(text, model) {
  const label = model.replace(/[\\"]/g, "\\$&").replace(/\n/g, "\\n");
  const found = [...text.matchAll(LINE)].filter(([, , of]) => of === label).map(([, gauge, , value]) => [gauge, value]);
  const of = Object.fromEntries(found);
  const [waiting, parked, slots, used] = ["waiting", "parked", "slots", "slots_used"].map((one) => Number(of[`fastddpm_${one}`] ?? 0));
  return { waiting: waiting + parked, slots, used };
}

function drawn(rows) {
  const { waiting, slots, used } = rows.at(-1);
  said("waiting", `${waiting} ${waiting === 1 ? "image waits" : "images wait"} for a slot`);
  said("slots", `${used} of ${slots} slots used`);
  line("#waiting .line", rows, ({ waiting }) => waiting);
  const most = Math.max(1, ...rows.map(({ slots }) => slots));
  line("#slots .line", rows, ({ used }) => used, most);
  line("#slots .room", rows, ({ slots }) => slots, most);
}

function said(plot, text) {
  document.getElementById(`${plot}-now`).textContent = text;
  document.getElementById(plot).setAttribute("aria-label", text);
}

function line(selector, rows, value, most = Math.max(1, ...rows.map(value))) {
  const place = (row, i) => `${KEPT - rows.length + i + 1},${HEIGHT - 2 - (value(row) / most) * (HEIGHT - 4)}`;
  document.querySelector(selector).setAttribute("points", rows.map(place).join(" "));
}

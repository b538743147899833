"use strict";
(() => {
  const themes = [...document.querySelectorAll('input[name="theme"]')];
  const kept = (write) => { try { return write === undefined ? localStorage.getItem("prefloop-theme") : localStorage.setItem("prefloop-theme", write); } catch { return null; } };
  for (const theme of themes) {
    if (theme.value === kept()) theme.checked = true;
    theme.addEventListener("change", () => kept(theme.value));
  }

  const list = document.querySelector("#talks"), tools = document.querySelector("#tools");
  if (!list || !tools) return;
  const more = document.querySelector("#further"), none = document.querySelector("#none"), AT_ONCE = 8;
  const value = (text) => (text === undefined ? NaN : Number(text));
  const rows = [...list.querySelectorAll("article.talk")].map((element) => {
    const answers = new Map();
    for (const { dataset: d } of element.querySelectorAll("[data-policy]")) {
      answers.set(d.policy, { gold: value(d.gold), reward: value(d.reward), words: Number(d.words), cut: d.finished === "false" });
    }
    return { element, answers, text: element.textContent.toLowerCase() };
  });
  list.replaceChildren(...rows.map((row) => row.element));
  tools.hidden = false;
  let shown = AT_ONCE;

  const chosen = (name) => tools.elements[name].value;
  const gain = (row) => {
    const score = chosen("score"), mine = row.answers.get(chosen("policy")), base = row.answers.get("sft");
    return mine && base ? mine[score] - base[score] : NaN;
  };
  const any = (row, test) => (chosen("policy") ? [row.answers.get(chosen("policy"))] : [...row.answers.values()]).some((a) => a && test(a));
  const filters = {
    all: () => true, better: (row) => gain(row) > 0, worse: (row) => gain(row) < 0,
    cut: (row) => any(row, (a) => a.cut), empty: (row) => any(row, (a) => !a.words),
  };
  const words = (row) => Math.max(...[...row.answers].filter(([name]) => !chosen("policy") || name === chosen("policy")).map(([, a]) => a.words));
  const orders = { gain: (row) => -gain(row), loss: gain, long: (row) => -words(row), short: words };

  const show = () => {
    const asked = chosen("query").toLowerCase().split(/\s+/).filter(Boolean);
    const keep = filters[chosen("filter")], order = orders[chosen("order")];
    let found = rows.filter((row) => keep(row) && asked.every((word) => row.text.includes(word)));
    if (order) {
      const by = new Map(found.map((row) => [row, order(row)])), last = (x) => (Number.isFinite(x) ? x : Infinity);
      found = found.sort((a, b) => { const x = last(by.get(a)), y = last(by.get(b)); return x === y ? 0 : x - y; });
    }
    const visible = new Set(found.slice(0, shown));
    for (const row of rows) row.element.hidden = !visible.has(row);
    list.append(...[...visible].map((row) => row.element));
    tools.elements.count.value = `${found.length} of ${rows.length}`;
    more.hidden = found.length <= shown;
    none.hidden = found.length > 0;
  };
  const afresh = () => { shown = AT_ONCE; show(); };
  tools.addEventListener("input", afresh);
  tools.addEventListener("submit", (event) => event.preventDefault());
  more.addEventListener("click", () => { shown += 4 * AT_ONCE; show(); });
  show();
})();

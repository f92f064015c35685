// Two panes that show a trial's pictures and numbers; a click on a point of a front fills the right one.
(() => {
  const trials = JSON.parse(document.getElementById("trials").textContent);
  const panes = [...document.querySelectorAll(".pane")];
  const show = (pane, key) => {
    const trial = trials[key];
    if (!trial) return;
    pane.querySelector("select").value = key;
    const image = pane.querySelector("img");
    image.hidden = !trial.picture;
    if (trial.picture) image.src = trial.picture;
    image.alt = "Fused slices of trial " + trial.trial;
    const list = pane.querySelector("dl");
    list.replaceChildren();
    for (const [name, value] of trial.facts) {
      const term = document.createElement("dt"), fact = document.createElement("dd");
      term.textContent = name;
      fact.textContent = value;
      list.append(term, fact);
    }
    mark();
  };
  const mark = () => {
    const chosen = panes.map((pane) => pane.querySelector("select").value);
    document.querySelectorAll("[data-trial]").forEach((point) => {
      point.classList.toggle("chosen", chosen.includes(point.dataset.trial));
    });
  };
  document.querySelectorAll('svg [id*="trial:"]').forEach((point) => {
    const key = point.id.slice(point.id.indexOf("trial:") + 6);
    if (!trials[key]) return;
    point.dataset.trial = key;
    point.setAttribute("tabindex", "0");
    point.setAttribute("role", "button");
    const words = document.createElementNS("http://www.w3.org/2000/svg", "title");
    words.textContent = key.replace(":", "  ") + "\n" + trials[key].facts.slice(0, 4).map((f) => f.join(" ")).join("\n");
    point.prepend(words);
    const choose = (event) => show(panes[event.shiftKey ? 0 : 1], key);
    point.addEventListener("click", choose);
    point.addEventListener("keydown", (event) => { if (event.key === "Enter") choose(event); });
  });
  panes.forEach((pane) => {
    const select = pane.querySelector("select");
    select.addEventListener("change", () => show(pane, select.value));
    show(pane, pane.dataset.start);
  });
})();

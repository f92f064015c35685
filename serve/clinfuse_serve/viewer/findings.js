// What was noticed in a pair while it was prepared: warnings and errors, as the sidecar holds them.
const SHOWN = ["warning", "error"];

// The same sentence as at the terminal.
function sentence({ problem, expected, found, todo }) {
  const words = [problem, expected && `expected ${expected}`, found && `found ${found}`, todo && `to do: ${todo}`];
  return words.filter(Boolean).join("; ");
}

// Fills the list, and hides it if there is nothing to tell.
export function tellFindings(list, findings = []) {
  const rows = findings.filter(({ severity }) => SHOWN.includes(severity));
  list.replaceChildren(...rows.map((finding) => Object.assign(document.createElement("li"), {
    className: finding.severity === "error" ? "bad" : "warn", textContent: sentence(finding),
  })));
  list.hidden = !rows.length;
}

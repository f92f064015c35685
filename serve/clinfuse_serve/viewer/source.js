// Where a pair comes from: a demo case, chosen files, or files dropped anywhere on the page.
const ROLES = ["anatomy", "companion", "brain", "bone", "lesion"];
const CT_NAME = /(^|[^a-z])(ct|spect|pet|companion)([^a-z]|$)/i;
const $ = (id) => document.getElementById(id);

export class Source {
  // onChosen({example} or {files, kind}); onMissing(): only half of a pair.
  constructor(onChosen, onMissing) {
    this.onChosen = onChosen;
    this.onMissing = onMissing;
    $("load").addEventListener("click", () => this.take());
    $("example").addEventListener("change", () => { $("own-files").hidden = Boolean($("example").value); if ($("example").value) this.take(); });
    document.addEventListener("dragover", (event) => { event.preventDefault(); document.body.classList.add("over"); });
    document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("over"); });
    document.addEventListener("drop", (event) => this.drop(event));
  }

  setExamples(rows) {
    const options = rows.map((row) => new Option(`${row.title}${row.simulated ? " (simulated)" : ""}`, row.id));
    $("example").replaceChildren(new Option("own files …", ""), ...options);
  }

  take() {
    if ($("example").value) { this.onChosen({ example: $("example").value }); return; }
    const files = {};
    for (const role of ROLES) if ($(role).files.length) [files[role]] = $(role).files;
    if (files.anatomy && files.companion) this.onChosen({ files, kind: $("kind").value }); else this.onMissing();
  }

  // Two files: a name with "ct", "spect" or "pet" in it is the companion, else the order decides. One file: fills the gap.
  drop(event) {
    event.preventDefault();
    document.body.classList.remove("over");
    const files = [...event.dataTransfer.files].slice(0, 2);
    if (!files.length) return;
    if (files.length === 2 && CT_NAME.test(files[0].name) && !CT_NAME.test(files[1].name)) files.reverse();
    if (files.length === 2) ["anatomy", "companion"].forEach((role, index) => put(role, files[index]));
    else put(CT_NAME.test(files[0].name) ? "companion" : "anatomy", files[0]);
    $("example").value = "";
    $("own-files").hidden = false;
    this.take();
  }
}

function put(role, file) {
  const list = new DataTransfer();
  list.items.add(file);
  $(role).files = list.files;
}

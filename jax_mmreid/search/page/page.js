"use strict";

// Text from files and from the service is only ever set as textContent, never as markup.

const $ = (id) => document.getElementById(id);
const files = new Map(); // modality -> File
const captions = new Map(); // modality -> its textarea

async function call(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Error("The service does not answer; is it still running?");
  }
  const answer = await response.json().catch(() => ({ error: `The service answered with status ${response.status}.` }));
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

function report(text, bad = false) {
  $("status").textContent = text;
  $("status").classList.toggle("bad", bad);
}

async function busy(text, action) {
  const buttons = [$("search"), $("add")];
  buttons.forEach((button) => (button.disabled = true));
  report(text);
  try {
    await action();
  } catch (error) {
    report(error.message, true);
  } finally {
    buttons.forEach((button) => (button.disabled = false));
  }
}

const count = (n, one, many) => `${n.toLocaleString("en")} ${n === 1 ? one : many}`;
const seconds = (id) => ($(id).value ? String(new Date($(id).value).getTime() / 1000) : null);
const shownTime = (unix) => new Date(unix * 1000).toLocaleString();

function makeSlot(modality, describes) {
  const slot = $("slot").content.firstElementChild.cloneNode(true);
  const [drop, image, input, remove] = [".drop", "img", "input", ".remove"].map((x) => slot.querySelector(x));
  const name = slot.querySelector(".file");
  const empty = name.textContent;
  slot.dataset.modality = modality;
  slot.querySelector(".name").textContent = modality;
  input.setAttribute("aria-label", `${modality} picture`);
  remove.setAttribute("aria-label", `Remove the ${modality} picture`);

  function set(file) {
    if (image.src) URL.revokeObjectURL(image.src);
    image.hidden = true;
    image.removeAttribute("src");
    input.value = "";
    remove.hidden = !file;
    name.textContent = file ? file.name : empty;
    if (!file) return files.delete(modality);
    files.set(modality, file);
    image.onload = () => (image.hidden = false); // what the browser cannot show, as TIFF, keeps its name only
    image.src = URL.createObjectURL(file);
  }

  input.addEventListener("change", () => input.files.length && set(input.files[0]));
  remove.addEventListener("click", () => set(null));
  drop.addEventListener("dragover", (event) => {
    event.preventDefault();
    drop.classList.add("over");
  });
  drop.addEventListener("dragleave", () => drop.classList.remove("over"));
  drop.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    if (event.dataTransfer.files.length) set(event.dataTransfer.files[0]);
  });
  $("clear").addEventListener("click", () => set(null));
  if (describes) {
    const label = slot.querySelector(".caption");
    label.hidden = false;
    captions.set(modality, label.querySelector("textarea"));
    $("clear").addEventListener("click", () => (captions.get(modality).value = ""));
  }
  return slot;
}

function form() {
  if (!files.size && ![...captions.values()].some((field) => field.value.trim())) {
    throw new Error("Choose a picture first.");
  }
  const data = new FormData();
  for (const [modality, file] of files) data.append(modality, file, file.name);
  for (const [modality, field] of captions) if (field.value.trim()) data.append(`caption_${modality}`, field.value);
  return data;
}

function address(path, fields) {
  const parameters = new URLSearchParams();
  for (const [name, value] of fields) if (value !== null && value !== "") parameters.append(name, value);
  return `${path}?${parameters}`;
}

async function showGallery() {
  const gallery = await call("/api/gallery");
  const span = gallery.earliest === null ? "" : `, ${shownTime(gallery.earliest)} to ${shownTime(gallery.latest)}`;
  $("gallery").textContent =
    `${count(gallery.entries, "entry", "entries")}${span} · model ${gallery.model} · you are ${gallery.caller}`;
  $("k").max = gallery.max_matches;
  const checked = new Set(chosenCameras());
  const choices = gallery.cameras.map((camera) => {
    const label = document.createElement("label");
    const box = document.createElement("input");
    box.type = "checkbox";
    box.value = camera;
    box.checked = checked.has(box.value);
    label.append(box, ` ${camera}`);
    return label;
  });
  $("cameras").hidden = choices.length === 0;
  $("cameras").querySelector(".choices").replaceChildren(...choices);
  return gallery;
}

const chosenCameras = () => [...$("cameras").querySelectorAll("input:checked")].map((box) => box.value);

function makeShare({ modality, share }) {
  const row = document.createElement("div");
  row.className = `share ${modality}${share < 0 ? " less" : ""}`;
  const [label, bar, value] = ["label", "bar", "value"].map((name) => {
    const part = document.createElement(name === "bar" ? "div" : "span");
    part.className = name;
    return part;
  });
  label.textContent = modality;
  value.textContent = share.toFixed(3);
  const fill = document.createElement("div");
  fill.style.width = `${Math.min(100, 100 * Math.abs(share))}%`;
  bar.append(fill);
  row.append(label, bar, value);
  return row;
}

function makeMatch({ entry, score, probability, shares }, i) {
  const item = $("match").content.firstElementChild.cloneNode(true);
  const part = (name) => item.querySelector(`.${name}`);
  item.dataset.id = entry.id;
  part("rank").textContent = i + 1;
  part("path").textContent = entry.path.slice(entry.path.lastIndexOf("/") + 1);
  part("path").title = entry.path;
  part("score").textContent = score.toFixed(4);
  if (probability !== null) {
    part("chance").hidden = false;
    part("probability").textContent = `${(100 * probability).toFixed(1)} %`;
  }
  part("shares").replaceChildren(...shares.map(makeShare));
  const about = [
    shares.length ? null : "no modality in common: compared by all that both have",
    Number.isSafeInteger(entry.pid) ? `identity ${entry.pid}` : null, // larger numbers stand for names
    entry.camid === null ? null : `camera ${entry.camid}`,
    entry.time === null ? null : shownTime(entry.time),
    entry.expires === null ? null : `expires ${shownTime(entry.expires)}`,
    `entry ${entry.id}`,
  ];
  part("about").textContent = about.filter((x) => x !== null).join(" · ");
  if (entry.thumbnail !== null) {
    const image = item.querySelector("img");
    image.onload = () => {
      image.hidden = false;
      item.querySelector(".picture span").hidden = true;
    };
    image.alt = `picture of entry ${entry.id}`;
    image.src = entry.thumbnail;
  }
  part("delete").setAttribute("aria-label", `Delete entry ${entry.id}`);
  part("delete").addEventListener("click", () => confirmDelete(entry, item));
  return item;
}

function showMatches(found) {
  $("matches").replaceChildren(...found.matches.map(makeMatch));
  const sent = [...found.modalities, ...found.captions.map((m) => `caption of ${m}`)].join(" + ");
  const searched = count(found.searched, "entry", "entries");
  report(
    found.matches.length
      ? `${count(found.matches.length, "match", "matches")} for ${sent} among ${searched}`
      : `No match for ${sent}: ${searched} can be found with these filters.`,
  );
}

function confirmDelete(entry, item) {
  const dialog = $("confirm");
  $("doomed").textContent = `${entry.id} (${entry.path})`;
  dialog.returnValue = "keep";
  dialog.onclose = () => {
    if (dialog.returnValue !== "delete") return;
    busy("Deleting…", async () => {
      await call(`/api/entries/${entry.id}`, { method: "DELETE" });
      item.remove();
      report(`Entry ${entry.id} is deleted.`);
      await showGallery();
    });
  };
  dialog.showModal();
}

$("query").addEventListener("submit", (event) => {
  event.preventDefault();
  busy("Searching…", async () => {
    $("matches").replaceChildren();
    const filters = [["k", $("k").value], ["since", seconds("since")], ["until", seconds("until")]];
    const cameras = chosenCameras().map((camera) => ["cameras", camera]);
    showMatches(await call(address("/api/search", [...filters, ...cameras]), { method: "POST", body: form() }));
  });
});

$("add").addEventListener("click", () =>
  busy("Adding…", async () => {
    const columns = [["pid", $("pid").value], ["camid", $("camid").value]];
    const times = [["time", seconds("time")], ["expires", seconds("expires")]];
    const entry = await call(address("/api/entries", [...columns, ...times]), { method: "POST", body: form() });
    report(`Added as entry ${entry.id}.`);
    await showGallery();
  }),
);

$("clear").addEventListener("click", () => {
  $("query").reset();
  $("matches").replaceChildren();
  report("No search yet.");
});

// A picture that misses its slot must not replace the page.
for (const name of ["dragover", "drop"]) window.addEventListener(name, (event) => event.preventDefault());

busy("Loading…", async () => {
  const gallery = await showGallery();
  $("slots").replaceChildren(...gallery.modalities.map((m) => makeSlot(m, gallery.captions.includes(m))));
  report("No search yet.");
});

"use strict";
const gallery = document.getElementById("gallery");
const cards = Array.from(gallery.children);
const group = document.getElementById("group");
const finding = document.getElementById("finding");
const sort = document.getElementById("sort");
const order = document.getElementById("order");
const words = document.getElementById("words");
const count = document.getElementById("count");
let ascending = true;

function compare(a, b) {
  const key = sort.value;
  if (key === "job") {
    return (a.dataset.job < b.dataset.job ? -1 : 1) * (ascending ? 1 : -1);
  }
  const x = parseFloat(a.dataset[key]);
  const y = parseFloat(b.dataset[key]);
  if (isNaN(x) || isNaN(y)) {
    return isNaN(x) - isNaN(y); // cards without the figure come last
  }
  return (x - y) * (ascending ? 1 : -1);
}

function show() {
  const text = words.value.toLowerCase();
  let visible = 0;
  cards.sort(compare);
  for (const card of cards) {
    const matches =
      (group.value === "" || card.dataset.group === group.value) &&
      (finding.value === "" || card.dataset.finding === finding.value) &&
      (text === "" || card.textContent.toLowerCase().includes(text));
    card.hidden = !matches;
    visible += matches ? 1 : 0;
    gallery.appendChild(card);
  }
  count.textContent = visible + " of " + cards.length;
}

for (const control of [group, finding, sort]) {
  control.addEventListener("change", show);
}
words.addEventListener("input", show);
order.addEventListener("click", () => {
  ascending = !ascending;
  order.textContent = ascending ? "ascending" : "descending";
  show();
});
for (const card of cards) {
  card.addEventListener("click", () => card.classList.toggle("large"));
}
const start = new URLSearchParams(window.location.hash.slice(1)); // e.g. report.html#group=filtered&sort=score
for (const [control, name] of [[group, "group"], [finding, "finding"], [sort, "sort"], [words, "words"]]) {
  if (start.has(name)) {
    control.value = start.get(name);
  }
}
show();

const box = document.getElementById("search"), learnt = document.getElementById("learnt");
const rows = [...document.querySelectorAll("section.row")], shown = document.getElementById("shown");
const texts = rows.map(row => row.textContent.toLowerCase());
function search() {
  const wanted = box.value.toLowerCase();
  let count = 0;
  rows.forEach((row, number) => { row.hidden = !texts[number].includes(wanted); count += !row.hidden; });
  shown.textContent = `${count} of ${rows.length} rows`;
}
box.addEventListener("input", search);
learnt.addEventListener("change", () => document.body.classList.toggle("plain", !learnt.checked));
search();

// On the page of models: a field that hides the rows without the words that are typed.
document.addEventListener("DOMContentLoaded", () => {
  const field = document.querySelector(".models-filter");
  if (!field) return;
  const rows = [...document.querySelectorAll("article table tbody tr")];
  field.addEventListener("input", () => {
    const words = field.value.toLowerCase().split(/\s+/);
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
    }
  });
});

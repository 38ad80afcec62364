// While a run goes on its lineage is fetched again, unless someone is using the keyboard in it.
const every = Number(document.querySelector("main").dataset.refresh);
if (every) {
  let waiting = false;
  setInterval(async () => {
    const main = document.querySelector("main");
    if (waiting || !main.dataset.refresh || document.hidden || main.contains(document.activeElement)) return;
    waiting = true;
    const response = await fetch(location.href).finally(() => (waiting = false));
    if (!response.ok || response.redirected) return;
    const fresh = new DOMParser().parseFromString(await response.text(), "text/html");
    main.replaceWith(document.adoptNode(fresh.querySelector("main")));
  }, every * 1000);
}

// Airflow frames these pages; a link to one of its own pages is opened by the frame's parent.
document.addEventListener("click", (event) => {
  const link = event.target.closest("a[data-airflow]");
  if (!link || window === parent || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  const outside = parent.document.createElement("a");
  outside.href = link.href;
  outside.click();
});

// Follows the theme that Airflow's own pages were set to; "system", and no script, leave it to the browser.
const follow = () => {
  const theme = localStorage.getItem("theme");
  document.documentElement.dataset.theme = theme === "light" || theme === "dark" ? theme : "";
};
follow();
addEventListener("storage", follow);

// The page counts what goes wrong in it, so that a test, or a reader, can see it on the root element.
(() => {
  const root = document.documentElement;
  root.dataset.errors = "0";
  const count = () => { root.dataset.errors = String(Number(root.dataset.errors) + 1); };
  window.addEventListener("error", count, true);
  window.addEventListener("unhandledrejection", count);
  document.addEventListener("securitypolicyviolation", count);
  const print = console.error.bind(console);
  console.error = (...words) => { count(); print(...words); };
})();

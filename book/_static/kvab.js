// What the theme leaves without a name for screen readers: the arrows of its contents, the logo's place.
document.addEventListener("DOMContentLoaded", () => {
  for (const arrow of document.querySelectorAll("nav summary")) {
    arrow.setAttribute("aria-label", "Pages below this one");
  }
  const logo = document.querySelector(".sidebar-primary-item:has(.logo)");
  logo?.setAttribute("role", "navigation");
  logo?.setAttribute("aria-label", "First page");
});

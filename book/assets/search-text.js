// What search shows of a page is its text: no menus, no launch links, no buttons.
window.addEventListener("DOMContentLoaded", () => {
  if (typeof Search === "undefined") return; // another page than the search page
  const sphinx = Search.htmlToText;
  Search.htmlToText = (page, anchor) => {
    const html = new DOMParser().parseFromString(page, "text/html");
    const article = html.querySelector("article");
    if (!article) return sphinx(page, anchor);
    article.querySelectorAll(".launch, .headerlink, script, style, noscript, figure, .tippy").forEach((part) => part.remove());
    return ((anchor && article.querySelector(anchor)) || article).textContent;
  };
});

(() => {
  const shown = element => {
    const style = getComputedStyle(element), box = element.getBoundingClientRect();
    return box.width > 0 && box.height > 0 && style.visibility !== "hidden" && !element.closest("details:not([open]) > :not(summary)");
  };
  const name = element => `${element.tagName} "${element.textContent.trim().slice(0, 60)}"`;
  const inScroll = element => element.closest(".scroll, pre") !== null;
  const all = [...document.body.querySelectorAll("*")].filter(shown);
  const width = document.documentElement.clientWidth;

  // What reaches beyond the window, unless it scrolls in a box of its own.
  const outside = all.filter(e => !inScroll(e) || e.matches(".scroll, pre")).filter(e => {
    const box = e.getBoundingClientRect();
    return box.right > width + 0.5 || box.left < -0.5;
  }).map(name);

  // Boxes whose content is cut off, and boxes that could not be scrolled by keyboard.
  const cut = all.filter(e => !(e instanceof SVGElement) && e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).display !== "inline"
    && !e.matches(".scroll, pre, html, body") && getComputedStyle(e).overflowX !== "visible").map(name);
  const stuck = all.filter(e => e.matches(".scroll, pre") && e.scrollWidth > e.clientWidth && e.tabIndex < 0).map(name);

  // Blocks of one parent must not cover each other.
  const covering = [];
  for (const parent of all.filter(e => !(e instanceof SVGElement) && !["TR", "P", "LI", "PRE", "CODE"].includes(e.tagName))) {
    const boxes = [...parent.children].filter(shown).map(e => [e, e.getBoundingClientRect()]);
    for (let i = 0; i < boxes.length; i++) for (let j = i + 1; j < boxes.length; j++) {
      const [a, b] = [boxes[i][1], boxes[j][1]];
      const x = Math.min(a.right, b.right) - Math.max(a.left, b.left), y = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
      if (x > 1 && y > 1) covering.push(`${name(boxes[i][0])} and ${name(boxes[j][0])}`);
    }
  }

  // Texts of a figure: within it, and not over each other.
  const figures = [];
  for (const svg of document.querySelectorAll("svg")) {
    const frame = svg.getBoundingClientRect();
    const texts = [...svg.querySelectorAll("text")].filter(t => t.textContent.trim()).map(t => [t, t.getBoundingClientRect()]);
    for (const [text, box] of texts)
      if (box.left < frame.left - 1 || box.right > frame.right + 1 || box.top < frame.top - 2 || box.bottom > frame.bottom + 2)
        figures.push(`${name(text)} leaves "${svg.getAttribute("aria-label")}"`);
    for (let i = 0; i < texts.length; i++) for (let j = i + 1; j < texts.length; j++) {
      const [a, b] = [texts[i][1], texts[j][1]];
      const x = Math.min(a.right, b.right) - Math.max(a.left, b.left), y = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
      // Boxes of texts have air above and below the letters.
      if (x > 1 && y > 0.4 * Math.min(a.height, b.height)) figures.push(`${name(texts[i][0])} covers ${name(texts[j][0])}`);
    }
  }

  // Contrast of every text of the page with what is behind it (WCAG 2).
  const channels = text => (text.match(/[\d.]+/g) || []).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255).map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = element => {
    for (let e = element; e; e = e.parentElement) {
      const color = channels(getComputedStyle(e).backgroundColor);
      if (color.length === 3 || color[3] > 0) return color;
    }
    return [255, 255, 255];
  };
  const faint = all.filter(e => !(e instanceof SVGElement) && [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())).filter(e => {
    const [a, b] = [light(channels(getComputedStyle(e).color)), light(behind(e))].sort((x, y) => y - x);
    return (a + 0.05) / (b + 0.05) < 4.5;
  }).map(name);

  return {
    overflow: Math.max(document.documentElement.scrollWidth, document.body.scrollWidth) - width,
    outside, cut, stuck, covering, figures, faint,
    dark: light(behind(document.body)) < 0.2,
  };
})()

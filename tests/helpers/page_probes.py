"""What the page must withstand, and code that looks from inside the browser at how it does."""

TEXT = {"P", "BR", "EM", "STRONG", "DEL", "CODE", "PRE", "SPAN", "A", "H3", "H4", "H5", "H6", "HR", "BLOCKQUOTE"}
LISTS = {"UL", "OL", "LI", "TABLE", "THEAD", "TBODY", "TR", "TH", "TD"}
ALLOWED = TEXT | LISTS | {"ARTICLE", "H2", "DIV", "BUTTON", "svg", "use", "DETAILS", "SUMMARY", "IMG"}
HOSTILE = (
    '<img src=x onerror="window.hacked=1">',
    "<script>window.hacked=1</script>",
    '<iframe srcdoc="<script>parent.hacked=1</script>"></iframe>',
    "<svg><style><img src=x onerror=hacked=1></style></svg>",
    '"><svg/onload=hacked=1>',
    "</p></div><style>body{display:none}</style><base href=https://evil.example>",
    "[x](javascript:window.hacked=1)",
    "[x](JaVaScRiPt:window.hacked=1) [x](java&#10;script:hacked=1) [x](\x01javascript:hacked=1)",
    "[x](data:text/html,<script>hacked=1</script>)",
    "[x](vbscript:hacked) [x](blob:http://x/y) [x](file:///etc/passwd) [x](//evil.example/a) [x](/v1/models)",
    "![x](https://evil.example/seen.png) ![](data:image/svg+xml,<svg/onload=hacked=1>)",
    '[x](https://evil.example/"onmouseover="hacked=1)',
    "<javascript:hacked=1> <https://evil.example/><img src=x onerror=hacked=1>",
    "`<img src=x onerror=hacked=1>`",
    "```html\n<img src=x onerror=hacked=1><script>hacked=1</script>\n```",
    '```"><img src=x onerror=hacked=1>\nkode\n```',
    "| <script>hacked=1</script> | b |\n|---|---|\n| <img src=x onerror=hacked=1> | [x](javascript:hacked=1) |",
    "# <img src=x onerror=hacked=1>\n> <script>hacked=1</script>\n\n- <img src=x onerror=hacked=1>",
    "$<img src=x onerror=hacked=1>$ \\[<script>hacked=1</script>\\]",
    "**_~~`[x](<img src=x onerror=hacked=1>",
    "&lt;img src=x onerror=hacked=1&gt; &#60;script&#62;hacked=1&#60;/script&#62;",
    "__proto__ constructor {text} {n} %s $& \u202e\u0000\ufffd",
)
UNCLOSED = ("**", "*a ", "_", "~~", "`", "``a", "[", "[a](", "![", "<", "$", "$$", "\\(", "\\[", "> ", "|", "# ", "- ")
UNCLOSED += ("https://", "https://a.b/...", "[a](b)", "*a_b~~", "a|b|", "[[a]", "\\", "1. ", "((", "<https://")

ROLES = {"button", "textbox", "combobox", "checkbox", "link", "listbox", "dialog", "spinbutton", "image", "main"}

RENDER = """async ([piece, size]) => {
  const { liveMarkdown } = await import("/markdown.js");
  const text = piece.repeat(Math.ceil(size / piece.length)).slice(0, size);
  const names = { copy: "", copied: "", code: "", table: "" };
  const body = document.createElement("div");
  const began = performance.now();
  liveMarkdown(body, names).update(text);
  return [performance.now() - began, body.textContent.length];
}"""

CONTRAST = """() => {
  const parse = (text) => (text.match(/[\\d.]+/g) ?? [0, 0, 0, 0]).map(Number);
  const light = (value) => ((value /= 255) <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
  const luminance = ([r, g, b]) => 0.2126 * light(r) + 0.7152 * light(g) + 0.0722 * light(b);
  const ground = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const color = parse(getComputedStyle(at).backgroundColor);
      if ((color[3] ?? 1) === 1) return color;
    }
    return [255, 255, 255];
  };
  const ratio = (color, node) => {
    const [one, other] = [luminance(parse(color)), luminance(ground(node))].sort((a, b) => b - a);
    return (one + 0.05) / (other + 0.05);
  };
  const found = [];
  for (const node of document.querySelectorAll("body *")) {
    if (!node.checkVisibility({ visibilityProperty: true }) || node.closest(".unseen, svg")) continue;
    const own = [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim());
    const what = `${node.localName}#${node.id}.${node.className}`;
    const color = (part) => ratio(getComputedStyle(node, part).color, node);
    if (own || node.matches("button, input, textarea, select")) found.push([what, color()]);
    if (node.placeholder) found.push([`${what}::placeholder`, color("::placeholder")]);
  }
  return found;
}"""

HEARD = """() => {
  window.heard = [];
  const note = (changes) => {
    for (const { addedNodes } of changes) window.heard.push(...[...addedNodes].map((node) => node.textContent));
  };
  new MutationObserver(note).observe(document.querySelector("#announcer"), { childList: true, subtree: true });
}"""

DROP = """([data, name, type]) => {
  const bytes = Uint8Array.from(atob(data), (char) => char.charCodeAt(0));
  const dataTransfer = new DataTransfer();
  dataTransfer.items.add(new File([bytes], name, { type }));
  for (const kind of ["dragover", "drop"]) {
    document.body.dispatchEvent(new DragEvent(kind, { dataTransfer, bubbles: true, cancelable: true }));
  }
}"""

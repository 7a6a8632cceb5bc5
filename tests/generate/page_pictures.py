"""Pictures of the page, to be looked at: python -m tests.generate.page_pictures FOLDER

Light, dark and narrow, each with an answer, a problem, and the settings; empty and with the menu where it is narrow.
"""

import base64
import sys
from pathlib import Path
from typing import Any

from playwright.sync_api import expect

from ..helpers.browser import Watched, opened, started
from ..helpers.page_probes import DROP
from ..helpers.page_server import PageServer, Script, answer, serve
from ..helpers.paths import DATA

PICTURE = DATA / "images" / "exact.png"
TEXT = """## Fjorder

En *fjord* er en **lang og smal** havarm med `is` i bunnen, se [Kartverket](https://example.org/fjord).

1. Sognefjorden
2. Hardangerfjorden
   - Sørfjorden

> Den lengste er 205 km.

| Fjord | Lengde |
|:--|--:|
| Sognefjorden | 205 km |
| Hardangerfjorden | 179 km |

```python
def dybde(fjord: str) -> int:
    return {"Sognefjorden": 1308}[fjord]  # meter under havflaten
```
"""
LOOKS: dict[str, dict[str, Any]] = {
    "light": {"color_scheme": "light"},
    "dark": {"color_scheme": "dark"},
    "narrow": {"color_scheme": "light", "viewport": {"width": 360, "height": 740}, "has_touch": True},
}


def take(tab: Watched, folder: Path, name: str, api: PageServer) -> None:
    """All pictures of one look."""

    def shot(what: str) -> None:
        tab.page.screenshot(path=folder / f"{name}-{what}.png", animations="disabled")

    shot("empty")
    api.scripts = [answer(TEXT), Script(status=500, error="the engine died")]
    tab.script(DROP, [base64.b64encode(PICTURE.read_bytes()).decode(), "fjord.png", "image/png"])
    expect(tab.at("#attached img")).to_be_visible()
    tab.at("#input").fill("Hva er en fjord?")
    shot("attached")
    tab.at("#send").click()
    expect(tab.note).to_contain_text("tokener")
    shot("answer")
    tab.at("#input").fill("Og hva er en vidde?")
    tab.at("#send").click()
    expect(tab.at(".problem")).to_be_visible()
    shot("problem")
    if name == "narrow":
        tab.at("#open-menu").click()
        shot("menu")
        tab.page.keyboard.press("Escape")
    tab.at("#open-settings").click()
    shot("settings")


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    with started() as browser:
        for name, options in LOOKS.items():
            with serve(PageServer()) as api, opened(browser, api.url, **options) as tab:
                take(tab, folder, name, api)
    print(*sorted(path.name for path in folder.glob("*.png")), sep="\n")


if __name__ == "__main__":
    main()

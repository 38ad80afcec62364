"""Chromium, and what it says of a page that people must be able to read: in light, in dark, by keyboard."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
SECONDS = 300  # for a run on a busy machine
OURS = "/jora/"  # in the address of each frame with a page of ours

# Texts with less contrast than WCAG 2.2 asks for (AA: 4.5, large ones 3), and what is wider than its place.
FAULTS = """() => {
  const parse = (text) => (text.match(/[\\d.]+/g) || [0, 0, 0, 0]).map(Number);
  const over = (top, under) => {
    const alpha = top[3] ?? 1;
    return [0, 1, 2].map((i) => top[i] * alpha + under[i] * (1 - alpha));
  };
  const light = (color) => {
    const [r, g, b] = color.map((c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    const layers = [];
    const shape = element.closest(".node")?.querySelector("rect");
    if (shape) layers.push(parse(getComputedStyle(shape).fill));
    for (let at = element; at; at = at.parentElement) {
      layers.push(parse(getComputedStyle(at).backgroundColor));
    }
    return layers.reverse().reduce((under, top) => over(top, under), [255, 255, 255]);
  };
  const faults = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const element = walk.currentNode.parentElement, text = walk.currentNode.textContent.trim();
    if (!text || !element.checkVisibility() || element.closest(".hidden, title, script, option")) continue;
    const style = getComputedStyle(element), back = behind(element);
    const ink = over(parse(element.closest("svg") ? style.fill : style.color), back);
    const [low, high] = [light(ink), light(back)].sort((a, b) => a - b);
    const size = parseFloat(style.fontSize), large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
    const contrast = (high + 0.05) / (low + 0.05);
    if (contrast < (large ? 3 : 4.5)) faults.push(`contrast ${contrast.toFixed(2)}: ${text.slice(0, 60)}`);
  }
  const root = document.documentElement, wide = root.scrollWidth - root.clientWidth;
  if (wide > 1) faults.push(`the page is ${wide} px too wide`);
  for (const each of document.querySelectorAll("body *")) {
    if (each.closest("svg, .hidden, .scroll, textarea, iframe")) continue;
    const box = each.getBoundingClientRect();
    if (box.width && box.right > root.clientWidth + 1) faults.push(`cut off: ${each.outerHTML.slice(0, 80)}`);
  }
  return faults;
}"""

# The name of what has the focus, and whether that can be seen: a ring or a mark, within the window.
FOCUS = """() => {
  const at = document.activeElement;
  if (!at || at === document.body) return null;
  const style = getComputedStyle(at), box = at.getBoundingClientRect();
  const ring = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2;
  const shape = at.querySelector("rect");
  const marked = shape && (parseFloat(getComputedStyle(shape).strokeWidth) >= 4
    || getComputedStyle(shape).fill !== "rgba(0, 0, 0, 0)");
  const inside = box.bottom > 0 && box.top < innerHeight && box.right > 0 && box.left < innerWidth;
  const name = at.getAttribute("aria-label") || at.labels?.[0]?.textContent || at.textContent;
  return {name: name.trim().replace(/\\s+/g, " "), visible: Boolean((ring || marked) && inside)};
}"""


def answers(address: str) -> bool:
    try:
        return httpx.get(address, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def wait(done: Callable[[], Any], seconds: float = SECONDS) -> Any:
    """What ``done`` returns, as soon as that is true."""
    deadline = time.monotonic() + seconds
    while not (result := done()):
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.5)
    return result


def ours(page: Any) -> list[Any]:
    """The page's frames that show pages of ours; not the sandboxed report within one."""
    return [
        frame for frame in page.frames[1:] if OURS in frame.url and not frame.url.endswith("/report.html")
    ]


def picture(page: Any, folder: Path, name: str) -> list[str]:
    """Keep a picture of the page in light and in dark; what cannot be read well in our frames, by theme."""
    faults = []
    for theme in ("dark", "light"):
        page.emulate_media(color_scheme=theme)
        page.wait_for_timeout(500)  # Airflow's own pages fade in
        page.screenshot(path=folder / (f"{name}.png" if theme == "light" else f"{name}-dark.png"))
        faults += [f"{name}, {theme}: {each}" for frame in ours(page) for each in frame.evaluate(FAULTS)]
    return faults


def tab_to(page: Any, name: str, most: int = 60) -> list[str]:
    """Press Tab until what has this name is focused.

    Returns:
      What was focused in our frames on the way, and could not be seen.
    """
    unseen = []
    for _ in range(most):
        page.keyboard.press("Tab")
        for frame in [page.main_frame, *ours(page)]:
            focused = frame.evaluate(FOCUS)
            if focused and frame != page.main_frame and not focused["visible"]:
                unseen.append(focused["name"])
            if focused and focused["name"] == name:
                return unseen
    raise AssertionError(f"{most} times Tab do not lead to {name!r}")

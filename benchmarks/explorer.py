"""Response time of the page of `ddln explore` to a slider: `python -m benchmarks.explorer`.

In chromium, from the release of the key that moves a slider to the change of the chart of the gap;
the first moves, which compile nothing but warm up, are not counted. Needs what `make test` does.
"""

import os
import shutil
import statistics
import subprocess
import sys

from playwright.sync_api import sync_playwright

MOVES, WARM_UP = 24, 4
WATCH = """() => {
  const path = () => document.querySelector('#gap path')?.getAttribute('d');
  let last = path();
  window.released = window.changed = 0;
  document.addEventListener('keyup', () => { window.released = performance.now() }, true);
  new MutationObserver(() => {
    const now = path();
    if (now && now !== last) { last = now; window.changed = performance.now(); }
  }).observe(document.body, { childList: true, subtree: true, attributes: true });
}"""


def main() -> None:
    """Print the median of each slider, in milliseconds."""
    command = [sys.executable, "-m", "ddln.cli", "explore", "--port", "0", "--no-browser"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        address = (server.stdout or sys.stdin).readline().split()[0]
        with sync_playwright() as driver:
            browser = driver.chromium.launch(
                executable_path=shutil.which("chromium"), args=["--no-sandbox"]
            )
            page = browser.new_page(viewport={"width": 1500, "height": 1100})
            page.goto(address)
            page.wait_for_selector("#gap path", timeout=180_000)
            page.wait_for_timeout(2000)
            page.evaluate(WATCH)
            for words, place in (("data seed", 2), ("imbalance", 5), ("scale", 6)):
                times = [moved(page, place, i) for i in range(WARM_UP + MOVES)][WARM_UP:]
                least, most = min(times), max(times)
                print(
                    f"{words:10} median {statistics.median(times):4.0f} ms, {least:.0f} to "
                    f"{most:.0f}, of {MOVES}; load {os.getloadavg()[0]:.1f}"
                )
            browser.close()
    finally:
        server.terminate()


def moved(page, place: int, i: int) -> float:
    """Milliseconds from a key's release to the chart's change."""
    page.get_by_role("slider").nth(place).focus()
    page.evaluate("() => { window.changed = 0 }")
    page.keyboard.press("ArrowRight" if i % 4 < 2 else "ArrowLeft")
    page.wait_for_function("() => window.changed > window.released")
    page.wait_for_timeout(200)
    return page.evaluate("() => window.changed - window.released")


if __name__ == "__main__":
    main()

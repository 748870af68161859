"""Speed of the explorer: time until the page is ready, images per second during a drag, 1,000 requests at once.

    python benchmarks/explorer.py RUN [RUN ...] [--seconds 5] [--rounds 5]

End to end in Chromium: an image counts once it is painted on the page. Needs `pip install playwright` and Debian's
chromium.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import math
import shutil
import statistics
import subprocess
import sys
import time

import httpx2
from playwright.sync_api import Page, sync_playwright
from speed import print_row, processor

FLAGS = ["--no-sandbox", "--disable-background-networking", "--no-first-run"]
READY = "document.body.dataset.ready === 'yes' && explorer.frames > 0"


def start_server(runs: list[str]) -> tuple[subprocess.Popen[str], str]:
    """Start the explorer; returns its process and its address with the token, once it listens."""
    command = [sys.executable, "-m", "vaekit", "explore", *runs, "--no-browser"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, process.stdout.readline().split()[0]


def wait_until(page: Page, expression: str) -> None:
    while not page.evaluate(expression):
        time.sleep(0.002)


def drag_rate(page: Page, seconds: float) -> float:
    """Images painted per second while the pointer is dragged in circles on the map."""
    box = page.locator("#map").bounding_box()
    assert box is not None
    x, y, r = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, box["height"] / 5
    page.mouse.move(x + r, y)
    page.mouse.down()
    before, started = page.evaluate("explorer.frames"), time.perf_counter()
    while (now := time.perf_counter() - started) < seconds:
        page.mouse.move(x + r * math.cos(2 * now), y + r * math.sin(2 * now))
    rate = (page.evaluate("explorer.frames") - before) / (time.perf_counter() - started)
    page.mouse.up()
    return rate


async def send_at_once(
    address: str, headers: dict[str, str], latents: dict[str, list[list[float]]], count: int
) -> str:
    """Send `count` requests at once; returns how many got which status."""
    limits = httpx2.Limits(max_connections=count)
    async with httpx2.AsyncClient(
        limits=limits, timeout=60, trust_env=False, headers=headers
    ) as client:
        requests = [
            client.post(f"{address}api/runs/0/decode", json={"latents": latents})
            for _ in range(count)
        ]
        responses = await asyncio.gather(*requests)
    counts = collections.Counter(response.status_code for response in responses)
    return ", ".join(f"{number} answered {code}" for code, number in sorted(counts.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    print(f"{time.strftime('%Y-%m-%d')}, {processor()}\n")
    print_row(["run", "page ready, s (median)", "images per second (median)", "lowest"])
    print_row(["---"] * 4)
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        for run in args.runs:
            ready_times, rates = [], []
            process, address = start_server([run])
            for _ in range(args.rounds):
                page = browser.new_page()
                started = time.perf_counter()
                page.goto(address)
                wait_until(page, READY)
                ready_times.append(time.perf_counter() - started)
                page.wait_for_timeout(1000)
                rates.append(drag_rate(page, args.seconds))
                page.close()
            process.terminate()
            process.wait()
            print_row(
                [
                    run,
                    f"{statistics.median(ready_times):.2f}",
                    f"{statistics.median(rates):.0f}",
                    f"{min(rates):.0f}",
                ]
            )
        browser.close()
    process, address = start_server(args.runs)
    address, _, token = address.partition("?token=")
    headers = {"authorization": f"token {token}"}
    response = httpx2.get(f"{address}api/runs", headers=headers, trust_env=False)
    first_run = response.json()["runs"][0]
    latents = {each["name"]: [each["mean"]] for each in first_run["latents"]}
    print(f"\n1,000 requests at once: {asyncio.run(send_at_once(address, headers, latents, 1000))}")
    process.terminate()


if __name__ == "__main__":
    main()

"""The explorer's page in a real browser (chromium; skipped if it is not installed)."""

import base64
import io
import shutil
import socket
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import sync_playwright

from conftest import random_dataset
from vaekit import build, train
from vaekit.explorer import server
from vaekit.explorer.session import ExplorerSession

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium")
RUNS = {
    "vae": {"latent_dim": 2},
    "convvae": {"latent_dim": 20, "channels": 2},
    "cvae": {"latent_dim": 3},
    "gmvae": {"latent_dim": 2, "clusters": 3, "start_epochs": 1},
    "hvampprior": {"latent_dim": 4, "top_dim": 3, "components": 6},
    "deepvae": {"channels": 4, "groups": "1x1:30 4x1:80"},
}
VAE, CONVVAE, CVAE, GMVAE, HVAMPPRIOR, DEEPVAE, BANDS = range(7)  # BANDS: a run of four channels


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    data = random_dataset(shape=(1, 16, 16), count=120)
    for name, settings in RUNS.items():
        dense = {} if name == "deepvae" else {"hidden_dim": 16}
        model = build(name, data, **dense, **settings)
        train(model, data, out=folder / name, epochs=3, batch_size=20, progress=False)
    data = random_dataset(shape=(4, 16, 16), kind="float")
    model = build("vae", data, hidden_dim=16, latent_dim=2)
    train(model, data, out=folder / "bands", epochs=1, progress=False)
    sessions = [ExplorerSession(folder / name) for name in RUNS]
    sessions.append(ExplorerSession(folder / "bands", bands="4,1"))
    # Codes that differ between images, as those of a longer training.
    sessions[DEEPVAE].context.picture_data.codes["z1_0"].normal_()
    app = server.make_app(sessions, "secret")
    listener = socket.create_server(("127.0.0.1", 0))
    running = server.Server(app)
    thread = threading.Thread(target=running.run, args=[[listener]], daemon=True)
    thread.start()
    while not running.started:
        time.sleep(0.02)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}/?token=secret"
    running.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def browser():
    arguments = ["--no-sandbox", "--disable-background-networking", "--no-first-run"]
    with sync_playwright() as play:
        opened = play.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield opened
        opened.close()


def until(page, expression, seconds=60.0):
    """Wait until an expression holds. (The page's security policy forbids Playwright's wait_for_function.)"""
    deadline = time.monotonic() + seconds
    while not page.evaluate(expression):
        assert time.monotonic() < deadline, expression
        page.wait_for_timeout(20)


@pytest.fixture
def page(browser, address, request):
    """The page, ready; fails on a script error, or if anything was requested from another host."""
    context = browser.new_context(**getattr(request, "param", {}))
    page, errors, own = context.new_page(), [], address.partition("?")[0]
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on(
        "console", lambda message: errors.append(message.text) if message.type == "error" else None
    )
    page.on(
        "request",
        lambda sent: sent.url.startswith((own, "data:", "blob:")) or errors.append(sent.url),
    )
    page.goto(address)
    page.wait_for_selector("body[data-ready=yes]")
    until(page, "explorer.frames > 0 && explorer.pending === 0")
    yield page
    context.close()
    assert not errors


def state(page, name):
    return page.evaluate(f"explorer.{name}")


def picture(page, selector="#image"):
    return page.locator(selector).first.evaluate("c => c.toDataURL()")


def choose_run(page, number):
    page.evaluate("delete document.body.dataset.ready")
    page.select_option("#run", str(number))
    page.wait_for_selector("body[data-ready=yes]")
    until(page, "explorer.latents !== null && explorer.pending === 0")


def changes(page, act, expression="explorer.frames"):
    """Act, and wait until an expression changes."""
    before = page.evaluate(expression)
    act()
    until(page, f"({expression}) !== {before!r}")


def on_map(page, x=0.5, y=0.5):
    page.locator("#map").scroll_into_view_if_needed()
    box = page.locator("#map").bounding_box()
    return box["x"] + x * box["width"], box["y"] + y * box["height"]


def screen_of(page, number):
    """The page coordinates of a point of the map."""
    return page.evaluate(
        """n => { const s = explorer, p = s.map.points[n], box = document.getElementById('map').getBoundingClientRect();
        return [box.left + box.width / 2 + (p[0] - s.view.x) * s.view.scale,
                box.top + box.height / 2 - (p[1] - s.view.y) * s.view.scale]; }""",
        number,
    )


def test_a_reload_works_and_the_token_leaves_the_address_bar(page, address):
    own = address.partition("?")[0]
    assert page.url == own
    page.reload()
    page.wait_for_selector("body[data-ready=yes]")
    assert page.url == own


def test_without_the_token_the_page_says_where_it_is(browser, address):
    page = browser.new_page()
    page.goto(address.partition("?")[0])
    page.wait_for_selector("#error:not([hidden])")
    assert page.inner_text("#error").endswith("open the address that `vaekit explore` printed")
    page.close()


def test_a_click_decodes_a_point_and_a_drag_decodes_continuously(page):
    before = picture(page)
    changes(page, lambda: page.mouse.click(*on_map(page, 0.2, 0.3)))
    assert picture(page) != before
    point, z = state(page, "point"), state(page, "latents.z[0]")
    assert z == pytest.approx(point, abs=1e-4)
    frames = state(page, "frames")
    page.mouse.move(*on_map(page, 0.3, 0.3))
    page.mouse.down()
    for i in range(20):
        page.mouse.move(*on_map(page, 0.3 + 0.02 * i, 0.5))
        page.wait_for_timeout(10)
    page.mouse.up()
    until(page, f"explorer.frames > {frames + 5}")
    assert "z = (" in page.inner_text("#caption")
    until(page, "document.querySelectorAll('#nearest canvas').length === 6")


def test_hovering_shows_the_image_of_a_point(page):
    page.mouse.move(*screen_of(page, 3))
    page.wait_for_selector("#tooltip:not([hidden])")
    assert "test image" in page.inner_text("#tooltip span")
    page.mouse.move(*on_map(page, 0.01, 0.01))
    page.wait_for_selector("#tooltip", state="hidden")


@pytest.mark.long
def test_zoom_pan_and_reset(page):
    first = state(page, "view")
    page.mouse.move(*on_map(page, 0.5, 0.5))
    page.mouse.wheel(0, -400)
    until(page, f"explorer.view.scale > {first['scale'] * 1.5}")
    page.keyboard.down("Shift")
    page.mouse.down()
    page.mouse.move(*on_map(page, 0.7, 0.6), steps=4)
    page.mouse.up()
    page.keyboard.up("Shift")
    assert state(page, "view")["x"] < first["x"]
    page.click("#reset")
    assert state(page, "view") == first


@pytest.mark.long
def test_the_keyboard_moves_the_point_and_zooms(page):
    page.focus("#map")
    point = state(page, "point")
    changes(page, lambda: page.keyboard.press("ArrowRight"))
    until(page, f"explorer.point[0] > {point[0]}")
    scale = state(page, "view")["scale"]
    page.keyboard.press("+")
    assert state(page, "view")["scale"] > scale


@pytest.mark.long
def test_classes_are_toggled_in_the_legend(page):
    before = picture(page, "#map")
    button = page.locator("#legend button").first
    button.click()
    assert button.get_attribute("aria-pressed") == "false"
    page.wait_for_timeout(100)
    assert picture(page, "#map") != before
    button.click()
    page.wait_for_timeout(100)
    assert picture(page, "#map") == before


def test_sliders_and_typed_numbers(page):
    number = page.get_by_role("spinbutton", name="z[0]")
    changes(page, lambda: number.fill("1.5"))
    assert state(page, "latents.z[0][0]") == 1.5
    slider = page.get_by_role("slider", name="z[0]")
    assert float(slider.input_value()) == 1.5
    slider.focus()
    changes(page, lambda: page.keyboard.press("ArrowRight"))
    assert state(page, "latents.z[0][0]") > 1.5
    until(page, "Math.abs(explorer.point[0] - explorer.latents.z[0][0]) < 1e-6")


def test_maps_of_twenty_dimensions(page):
    choose_run(page, CONVVAE)
    assert page.input_value("#method") == "pca"
    assert page.locator("#sliders .slider").count() == 20
    order = page.evaluate("explorer.runs[1].latents[0].order[0]")
    assert page.locator("#sliders .slider span").first.inner_text() == f"z[{order}]"
    changes(page, lambda: page.mouse.click(*on_map(page, 0.6, 0.4)))
    page.select_option("#method", "tsne")
    until(page, "explorer.map && explorer.map.axis_names[0] === 'tsne'")
    changes(page, lambda: page.mouse.click(*on_map(page, 0.4, 0.4)))
    page.select_option("#method", "dims")
    page.select_option("#dim-x", "7")
    until(page, "explorer.map && explorer.map.axis_names[0] === 'z[7]'")


def test_a_late_answer_does_not_replace_the_map_chosen_after_it(page):
    choose_run(page, CONVVAE)
    page.evaluate("""() => { const send = window.fetch; window.late = 0; window.fetch = async (url, options) => {
        const response = await send(url, options), late = url.includes("dims&") && !url.includes("dims=7");
        if (late) { await new Promise((done) => setTimeout(done, 1000)); setTimeout(() => window.late++, 100); }
        return response; }; }""")
    page.select_option("#method", "dims")
    page.select_option("#dim-x", "7")
    until(page, "explorer.map && explorer.map.axis_names[0] === 'z[7]'")
    until(page, "window.late === 1")
    assert state(page, "map.axis_names[0]") == "z[7]"


def test_a_3d_map_rotates_and_a_point_is_selected(page):
    choose_run(page, CVAE)
    assert len(state(page, "map.points[0]")) == 3
    before = state(page, "rotation")
    page.mouse.move(*on_map(page, 0.5, 0.5))
    page.mouse.down()
    page.mouse.move(*on_map(page, 0.6, 0.55), steps=3)
    page.mouse.up()
    assert state(page, "rotation") != before
    box = page.locator("#map").bounding_box()
    x, y = (
        page.evaluate("""() => { const s = explorer, {yaw, pitch} = s.rotation, m = s.centre, p = s.map.points[5];
        const [x, y, z] = [0, 1, 2].map(i => p[i] - m[i]);
        const a = x * Math.cos(yaw) + z * Math.sin(yaw), b = -x * Math.sin(yaw) + z * Math.cos(yaw);
        return [s.box.width / 2 + (a - s.view.x) * s.view.scale,
                s.box.height / 2 - (y * Math.cos(pitch) - b * Math.sin(pitch) - s.view.y) * s.view.scale]; }""")
    )
    changes(page, lambda: page.mouse.click(box["x"] + x, box["y"] + y))
    points = np.array(state(page, "map.points"))
    assert np.abs(points - np.array(state(page, "latents.z[0]"))).max(1).min() < 1e-3


def test_classes_and_analogies_of_a_conditional_model(page):
    choose_run(page, CVAE)
    before = picture(page)
    changes(page, lambda: page.select_option("#label", "2"))
    assert picture(page) != before
    page.click("#analogies")
    until(
        page,
        "document.querySelectorAll('#strip canvas').length === explorer.runs[2].classes.length",
    )


def test_samples_follow_seed_cluster_and_temperature(page):
    choose_run(page, GMVAE)
    page.select_option("#cluster", "1")
    page.fill("#seed", "7")
    changes(page, lambda: page.click("#sample"))
    first, caption = picture(page), page.inner_text("#caption")
    assert caption.endswith("--count 1 --seed 7 --cluster 1")
    assert page.input_value("#seed") == "8"
    changes(page, lambda: page.click("#sample"))
    assert picture(page) != first
    page.fill("#seed", "7")
    changes(page, lambda: page.click("#sample"))
    assert picture(page) == first
    page.fill("#temperature", "0")
    page.click("#sample-25")
    until(page, "document.querySelectorAll('#strip canvas').length === 25")
    assert page.locator("#colour-label").is_visible()
    page.select_option("#colour", "clusters")
    assert page.locator("#legend button").first.inner_text().startswith("cluster")


def test_each_of_two_levels_has_sliders_and_a_map(page):
    choose_run(page, HVAMPPRIOR)
    names = page.evaluate("explorer.runs[4].latents.map(l => l.name)")
    assert sorted(names) == ["z1", "z2"]
    assert page.locator("#sliders .slider").count() == 7
    page.select_option("#latent", "z1")
    until(page, "explorer.map && explorer.map.points[0].length <= 3")
    page.select_option("#method", "pca")
    until(page, "explorer.map && explorer.map.axis_names[0].startsWith('PC')")
    changes(page, lambda: page.mouse.click(*on_map(page, 0.4, 0.6)))
    assert len(state(page, "latents.z1[0]")) == 4


def test_a_deep_hierarchy_has_sliders_along_principal_components(page):
    choose_run(page, DEEPVAE)
    assert page.input_value("#method") == "pca"
    assert page.locator("#sliders .slider").count() == 24  # of 30 dimensions
    before = state(page, "latents.z1_0[0]")
    number = page.get_by_role("spinbutton", name="z1_0 PC 2", exact=True)
    changes(page, lambda: number.fill("3"))
    assert float(page.get_by_role("slider", name="z1_0 PC 2", exact=True).input_value()) == 3
    moved = np.subtract(state(page, "latents.z1_0[0]"), before)
    component = page.evaluate(f"explorer.runs[{DEEPVAE}].latents[0].components[1]")
    assert np.allclose(moved, 3 * component["spread"] * np.array(component["axis"]), atol=1e-3)
    assert np.abs(moved).max() > 0.1
    others = page.get_by_role("spinbutton", name="z1_0 PC 1", exact=True)
    assert abs(float(others.input_value())) < 0.01  # the axes are orthogonal


def test_a_drawn_digit_is_encoded_by_each_run(page):
    box = page.locator("#pad").bounding_box()
    page.locator("#pad").scroll_into_view_if_needed()
    box = page.locator("#pad").bounding_box()
    page.mouse.move(box["x"] + 90, box["y"] + 30)
    page.mouse.down()
    page.mouse.move(box["x"] + 100, box["y"] + 170, steps=6)
    page.mouse.up()
    until(page, f"document.querySelectorAll('#reconstructions canvas').length === {2 * len(RUNS)}")
    assert "ELBO" in page.inner_text("#reconstructions")
    assert "±" in page.inner_text("#sliders .slider span")
    page.click("#clear")
    assert page.locator("#reconstructions canvas").count() == 0


def test_image_files_are_chosen_and_dropped(page):
    content = io.BytesIO()
    Image.fromarray(np.eye(16, dtype=np.uint8) * 255).save(content, "PNG")
    file = {"name": "one.png", "mimeType": "image/png", "buffer": content.getvalue()}
    page.set_input_files("#file", file)
    shown = f"document.querySelectorAll('#reconstructions canvas').length === {2 * len(RUNS)}"
    until(page, shown)
    latents = state(page, "latents.z[0]")
    page.click("#clear")
    page.evaluate("""text => { const data = new DataTransfer(), raw = Uint8Array.from(atob(text), c => c.charCodeAt(0));
        data.items.add(new File([raw], 'one.png', {type: 'image/png'}));
        document.getElementById('pad').dispatchEvent(new DragEvent('drop', {dataTransfer: data, bubbles: true})); }""",
        base64.b64encode(content.getvalue()).decode())  # fmt: skip
    until(page, shown)
    assert state(page, "latents.z[0]") == latents


def test_interpolations_are_shown_and_saved(page):
    changes(page, lambda: page.mouse.click(*on_map(page, 0.3, 0.3)))
    page.click("#set-start")
    changes(page, lambda: page.mouse.click(*on_map(page, 0.7, 0.6)))
    page.fill("#steps", "5")
    page.click("#set-end")
    until(page, "document.querySelectorAll('#strip canvas').length === 5")
    changes(page, lambda: page.locator("#strip canvas").nth(2).click())
    start, end = state(page, "start.latents.z[0]"), state(page, "end.latents.z[0]")
    middle = [(a + b) / 2 for a, b in zip(start, end, strict=True)]
    assert state(page, "latents.z[0]") == pytest.approx(middle, abs=1e-4)
    for kind in ("png", "gif"):
        page.click(f"#save-{kind}")
        until(page, f"document.getElementById('save-status').textContent.includes('.{kind} ')")
        path, _, command = page.inner_text("#save-status").partition(" reproduce with: ")
        assert Path(path.strip()).is_file()
        assert command.startswith("vaekit decode ")


def test_training_curves_and_metrics_of_all_runs(page):
    page.wait_for_selector("#metrics table")
    assert page.locator("#metrics tr").count() == len(RUNS) + 2
    blank = page.evaluate(
        "(() => { const c = document.createElement('canvas'); c.width = 600; c.height = 260; return c.toDataURL(); })()"
    )
    assert picture(page, "#curves") != blank


def test_all_controls_have_accessible_names(page):
    unnamed = page.evaluate("""() => [...document.querySelectorAll('button, input, select, canvas')].filter(e =>
        !e.getAttribute('aria-label') && !e.textContent.trim() &&
        !(e.labels && e.labels.length) && !e.closest('#tooltip'))
        .map(e => e.outerHTML)""")
    assert unnamed == []


@pytest.mark.long
@pytest.mark.parametrize("page", [{"color_scheme": "dark"}], indirect=True)
def test_dark_mode(page):
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert max(int(part) for part in colour[4:-1].split(",")) < 60


@pytest.mark.long
@pytest.mark.parametrize(
    "page", [{"has_touch": True, "viewport": {"width": 400, "height": 800}}], indirect=True
)
def test_phone_layout(page):
    changes(page, lambda: page.touchscreen.tap(*on_map(page, 0.6, 0.6)))
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_images_of_four_channels_are_shown_by_their_bands_and_none_is_taken(page, tmp_path):
    choose_run(page, BANDS)
    shown = "4 × 16 × 16, 20 test images; shown: bands 4, 1 of 4 as magenta, green"
    assert page.locator("#run-info").inner_text().endswith(shown)
    with Image.open(io.BytesIO(base64.b64decode(picture(page).partition(",")[2]))) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    assert pixels.shape == (16, 16, 3)
    assert np.array_equal(pixels[..., 0], pixels[..., 2])
    assert np.abs(pixels[..., 0] - pixels[..., 1]).max() > 10
    assert (
        page.locator("#unreadable")
        .inner_text()
        .startswith("No input: the model takes images of 4 channels")
    )
    assert not page.locator("#pad").is_visible()
    choose_run(page, VAE)
    assert page.locator("#pad").is_visible()
    assert page.locator("#unreadable").inner_text() == ""

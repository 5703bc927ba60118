"""Create, Edit and Control as a person uses them, with the model that ships."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import BrowserContext, Page, expect

from app.server.store import Job
from ldm.images import open_image
from tests.app.page.conftest import READY, Site, go, made, opened_page, set_form
from tests.app.server.conftest import ended

pytestmark = pytest.mark.loopback
APPLE = {"prompt": "red apple, noto style", "seed": 5, "steps": 4}


def last_job(site: Site) -> Job:
    return site.service.jobs.list(limit=1)[0]


def alone(job: Job) -> dict[str, Any]:
    """What was asked; that it is one picture need not be said."""
    return {"count": 1, **job.asked}


def pixels(site: Site, job: Job) -> np.ndarray:
    return open_image(site.service.gallery.path(job, 0)).pixels


def drag(page: Page, where: str, path: list[tuple[float, float]]) -> None:
    """The mouse goes along points, in parts of the element's sides."""
    box = page.locator(where).bounding_box()
    assert box is not None
    points = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in path]
    page.mouse.move(*points[0])
    page.mouse.down()
    for point in points[1:]:
        page.mouse.move(*point, steps=5)
    page.mouse.up()


def test_a_prompt_becomes_a_picture_that_is_seen_while_it_is_drawn(page: Page, site: Site) -> None:
    set_form(page, **APPLE | {"steps": 60, "count": 2})
    expect(page.locator("#ldm-tokens")).to_contain_text("5 of 22 tokens")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector(".ldm-preview")
    expect(page.locator(".ldm-progress [role=status]")).to_contain_text("of 60")
    page.wait_for_function("document.querySelectorAll('#ldm-runs .ldm-done').length === 2")
    job = last_job(site)
    assert {k: job.asked[k] for k in ("prompt", "seed", "steps", "count")} == APPLE | {"steps": 60, "count": 2}
    for place in (0, 1):
        shown = page.locator(f"#ldm-runs [data-place='{place}'] img")
        assert shown.evaluate("one => one.decode().then(() => one.naturalWidth)") == 64
        assert f"seed {5 + place}" in page.inner_text(f"#ldm-runs [data-place='{place}']")


def test_what_was_set_and_made_is_there_after_a_reload(page: Page, site: Site) -> None:
    page.click("text=Finer settings")
    set_form(page, **APPLE, model="scenes", solver="euler")
    made(page)
    page.reload()
    page.wait_for_selector(READY)
    page.wait_for_selector("#ldm-runs .ldm-done")
    assert page.input_value("#ldm-f-prompt textarea") == APPLE["prompt"]
    assert page.input_value("#ldm-f-seed input") == "5" and page.input_value("#ldm-f-steps input") == "4"
    expect(page.locator("#ldm-f-model input")).to_have_value("scenes")
    page.click("text=Finer settings")
    expect(page.locator("#ldm-f-solver input")).to_have_value("euler")
    before = last_job(site).id
    made(page)  # the same settings go out again
    assert last_job(site).id != before and last_job(site).asked == site.service.jobs.job(before).asked


@pytest.mark.torture
def test_a_reload_while_it_is_drawn_finds_it_again(page: Page, site: Site) -> None:
    set_form(page, **APPLE | {"steps": 150, "count": 2})
    page.keyboard.press("Control+Enter")
    page.wait_for_selector(".ldm-preview")
    page.reload()
    page.wait_for_selector(READY)
    page.wait_for_selector(".ldm-preview")
    page.click("text=Cancel, keep what is there")
    page.wait_for_selector(".ldm-partial")


def test_who_cancels_keeps_what_is_there(page: Page, site: Site) -> None:
    set_form(page, **APPLE | {"steps": 150})
    page.keyboard.press("Control+Enter")
    page.wait_for_selector(".ldm-preview")
    page.click("text=Cancel, keep what is there")
    page.wait_for_selector(".ldm-partial")
    expect(page.locator(".ldm-partial")).to_contain_text("not finished")
    expect(page.locator(".ldm-progress")).to_have_count(0)
    assert last_job(site).state == "cancelled" and last_job(site).pictures[0].partial


def test_the_best_of_several_comes_first(page: Page, site: Site) -> None:
    set_form(page, **APPLE, best_of=3)
    page.keyboard.press("Control+Enter")
    page.wait_for_selector(".ldm-others")
    assert last_job(site).count == 3
    best = page.locator("#ldm-runs > .ldm-now > figure")
    expect(best).to_have_count(1)
    expect(page.locator(".ldm-others figure")).to_have_count(2)
    told = page.locator("#ldm-runs figcaption").all_text_contents()
    scores = [float(re.findall(r"CLIP (\d\.\d+)", text)[0]) for text in told]
    assert scores == sorted(scores, reverse=True)


def test_only_what_is_painted_changes(page: Page, site: Site) -> None:
    set_form(page, **APPLE)
    made(page)
    before = pixels(site, last_job(site))
    page.click("#ldm-runs >> text=Edit")
    page.wait_for_selector("#ldm-edit-board .ldm-layer", state="visible")
    page.wait_for_function("document.querySelector('#ldm-edit-board .ldm-base')?.width === 64")
    page.keyboard.press("Escape")
    drag(page, "#ldm-edit-board .ldm-layer", [(0.6, 0.1), (0.8, 0.2), (0.6, 0.3)])
    page.click("#ldm-edit-board >> text=Box")
    drag(page, "#ldm-edit-board .ldm-layer", [(0.1, 0.7), (0.3, 0.9)])
    page.click("#ldm-edit-board >> text=Eraser")
    drag(page, "#ldm-edit-board .ldm-layer", [(0.1, 0.9), (0.3, 0.9)])
    page.locator("#ldm-edit-strength").fill("1")
    set_form(page, prompt="mushroom, noto style")
    made(page)
    job = last_job(site)
    mask = open_image(site.service.uploads.folder / job.asked["mask"]).pixels[..., 0] > 127
    after = pixels(site, job)
    assert 100 < mask.sum() < 1500 and mask.shape == (64, 64)
    assert np.array_equal(after[~mask], before[~mask]) and not np.array_equal(after[mask], before[mask])
    changed = int((after != before).any(-1).sum())
    page.check("text=Show every changed pixel")
    expect(page.locator(".ldm-compare")).to_contain_text(f"{changed:,} of 4,096 pixels changed")
    page.locator(".ldm-compare input[type=range]").fill("50")
    assert "50%" in page.locator(".ldm-before").evaluate("one => one.style.clipPath")


@pytest.mark.torture
def test_strokes_survive_a_reload(page: Page, site: Site) -> None:
    set_form(page, **APPLE)
    made(page)
    page.click("#ldm-runs >> text=Edit")
    page.wait_for_function("document.querySelector('#ldm-edit-board .ldm-base')?.width === 64")
    drag(page, "#ldm-edit-board .ldm-layer", [(0.2, 0.2), (0.8, 0.8)])
    pen = "document.querySelector('#ldm-edit-board .ldm-layer').getContext('2d')"
    painted = f"[...{pen}.getImageData(0, 0, 64, 64).data].filter(Boolean).length"
    count = page.evaluate(painted)
    assert count > 100
    page.wait_for_function("JSON.parse(sessionStorage.getItem('ldm-edit') || '{}').strokes")
    page.reload()
    page.wait_for_selector(READY)
    expect(page.locator("#ldm-tab-edit")).to_have_attribute("aria-selected", "true")
    page.wait_for_function(f"({painted}) === {count}")
    page.locator("#ldm-edit-board .ldm-layer").focus()
    drag(page, "#ldm-edit-board .ldm-layer", [(0.2, 0.8), (0.8, 0.2)])
    assert page.evaluate(painted) > count
    page.keyboard.press("Control+z")
    assert page.evaluate(painted) == count


@pytest.mark.torture
def test_settings_of_an_edit_bring_its_picture_and_strokes_back(page: Page, site: Site) -> None:
    set_form(page, **APPLE)
    made(page)
    page.click("#ldm-runs >> text=Edit")
    page.wait_for_function("document.querySelector('#ldm-edit-board .ldm-base')?.width === 64")
    drag(page, "#ldm-edit-board .ldm-layer", [(0.3, 0.3), (0.7, 0.7)])
    page.locator("#ldm-edit-strength").fill("0.6")
    page.locator("#ldm-edit-soft").fill("3")
    set_form(page, prompt="mushroom, noto style")
    made(page)
    first = last_job(site)
    page.click("#ldm-edit-board >> text=Clear")
    page.locator("#ldm-edit-strength").fill("0.1")
    page.click("#ldm-tab-create")
    page.click("#ldm-clear")
    page.click("#ldm-runs >> text=Use settings")
    expect(page.locator("#ldm-tab-edit")).to_have_attribute("aria-selected", "true")
    expect(page.locator("#ldm-edit-strength")).to_have_value("0.6")
    expect(page.locator("#ldm-f-prompt textarea")).to_have_value("mushroom, noto style")
    made(page)
    again = last_job(site)
    assert again.id != first.id and alone(again) == alone(first)
    assert np.array_equal(pixels(site, first), pixels(site, again))


@pytest.mark.torture
def test_what_has_no_field_is_shown_and_kept(page: Page, site: Site) -> None:
    job = ended(site.service, site.service.submit({**APPLE, "solver": "ddim", "eta": 0.5}, "other"))
    go(page, "gallery")
    page.locator("#ldm-gallery-grid .ldm-frame").first.click()
    page.click("#ldm-look >> text=Use settings")
    expect(page.locator("#ldm-rest")).to_contain_text("eta 0.5")
    made(page)
    assert alone(last_job(site)) == alone(job)
    page.click("#ldm-rest >> text=eta")
    made(page)
    assert "eta" not in last_job(site).asked


@pytest.mark.torture
def test_an_edge_is_dragged_outwards(page: Page, site: Site) -> None:
    set_form(page, **APPLE)
    made(page)
    page.click("#ldm-runs >> text=Edit")
    page.wait_for_function("document.querySelector('#ldm-edit-board .ldm-base')?.width === 64")
    handle = page.locator("#ldm-edit-board .ldm-right").bounding_box()
    sheet = page.locator("#ldm-edit-board .ldm-layer").bounding_box()
    assert handle is not None and sheet is not None
    page.mouse.move(handle["x"] + 4, handle["y"] + 10)
    page.mouse.down()
    page.mouse.move(handle["x"] + 4 + sheet["width"] / 4, handle["y"] + 10, steps=3)
    page.mouse.up()
    assert page.input_value("[data-pad='2']") == "16"
    page.locator("#ldm-edit-board .ldm-top").focus()
    page.keyboard.press("ArrowUp")
    assert page.input_value("[data-pad='1']") == "8"
    page.fill("[data-pad='1']", "0")
    page.locator("[data-pad='1']").blur()
    made(page)
    assert last_job(site).asked["pad"] == [0, 0, 16, 0]
    assert pixels(site, last_job(site)).shape == (64, 80, 3)


def test_a_scribble_guides_a_picture(page: Page, site: Site) -> None:
    go(page, "control")
    page.wait_for_function("document.querySelector('.ldm-control .ldm-base')?.width === 64")
    drag(page, ".ldm-control .ldm-layer", [(0.5, 0.2), (0.8, 0.5), (0.5, 0.8), (0.2, 0.5), (0.5, 0.2)])
    set_form(page, prompt="lemon, noto style", steps=4, seed=3)
    page.click(".ldm-control >> text=Preview")
    page.wait_for_selector(".ldm-seen img")
    made(page)
    (use,) = last_job(site).asked["controls"]
    assert use["model"] in ("emoji-scribble", "scribble") and use["hint"] == "none"
    drawn = open_image(site.service.uploads.folder / use["image"]).pixels
    assert drawn.shape == (64, 64, 3) and 0.01 < (drawn > 127).mean() < 0.3
    page.wait_for_function("(JSON.parse(sessionStorage.getItem('ldm-controls')) || [{}])[0].strokes")
    for _ in range(2):  # what was drawn is there after a reload, and after another
        page.reload()
        page.wait_for_selector(READY)
        page.wait_for_function("document.querySelector('.ldm-control .ldm-layer')?.width === 64")
        page.wait_for_timeout(800)  # what a page keeps it keeps by now
        made(page)
        assert last_job(site).asked["controls"] == [use]
    page.click("text=Another control")
    expect(page.locator(".ldm-control")).to_have_count(2)


def test_a_dropped_picture_fills_the_form(page: Page, context: BrowserContext, site: Site) -> None:
    set_form(page, **APPLE, negative="leaf")
    made(page)
    data = list(site.service.gallery.path(last_job(site), 0).read_bytes())
    other = opened_page(context, "/#gallery")
    drop = """([data]) => {
      const carried = new DataTransfer();
      carried.items.add(new File([new Uint8Array(data)], "apple.png", {type: "image/png"}));
      for (const kind of ["dragenter", "dragover", "drop"])
        document.body.dispatchEvent(new DragEvent(kind, {bubbles: true, cancelable: true, dataTransfer: carried}));
    }"""
    other.evaluate("localStorage.clear(); sessionStorage.clear()")
    other.evaluate(drop, [data])
    expect(other.locator("#ldm-f-prompt textarea")).to_have_value(str(APPLE["prompt"]))
    expect(other.locator("#ldm-f-seed input")).to_have_value("5")
    expect(other.locator("#ldm-tab-create")).to_have_attribute("aria-selected", "true")
    before = last_job(site)
    made(other)
    assert np.array_equal(pixels(site, before), pixels(site, last_job(site)))


def test_errors_say_how_to_mend_them(page: Page) -> None:
    set_form(page, **APPLE | {"width": 4096, "height": 4096})
    page.keyboard.press("Control+Enter")
    expect(page.locator(".ldm-error")).to_contain_text("Ask for a smaller one.")
    go(page, "edit")
    page.keyboard.press("Control+Enter")
    expect(page.locator(".ldm-error").last).to_contain_text("Bring a picture first")

"""Compare, Models, Gallery and Personalize as a person uses them."""

from __future__ import annotations

import io

import pytest
from PIL import Image, ImageDraw
from playwright.sync_api import Page, expect

from ldm.store.find import find_adapter
from tests.app.page.conftest import Site, go, made, set_form, shows

pytestmark = pytest.mark.loopback
QUICK = {"model": "scenes", "prompt": "a red circle", "steps": 2, "seed": 1}


def test_settings_are_compared_at_shared_noise_after_a_bill(page: Page, site: Site) -> None:
    set_form(page, **QUICK)
    go(page, "compare")
    page.get_by_label("Across: setting").select_option("steps")
    page.get_by_label("Across: values").fill("1, 2")
    page.get_by_label("Down: setting").select_option("prompt")
    page.get_by_label("Down: values").fill("red, blue")
    page.get_by_label("Down: words of the prompt to replace").fill("red")
    page.click("text=What will it cost?")
    expect(page.locator("#ldm-compare-told")).to_contain_text("4 pictures, 6 steps")
    jobs = len(site.service.jobs.list())
    page.click("text=Make them")
    page.wait_for_function("document.querySelectorAll('#ldm-compare-grid img').length === 4")
    expect(page.locator("#ldm-compare-grid")).to_contain_text("Steps 1")
    cells = site.service.jobs.list()[: len(site.service.jobs.list()) - jobs]
    assert sorted((job.asked["prompt"], job.asked["steps"], job.asked["seed"]) for job in cells) == [
        ("a blue circle", 1, 1), ("a blue circle", 2, 1), ("a red circle", 1, 1), ("a red circle", 2, 1)
    ]  # fmt: skip
    page.wait_for_selector("text=Save the sheet")
    sheet = page.request.get(page.get_attribute("text=Save the sheet", "href") or "")
    assert sheet.ok and Image.open(io.BytesIO(sheet.body())).width > 2 * 96
    page.reload()
    page.wait_for_function("document.querySelectorAll('#ldm-compare-grid img').length === 4")
    page.get_by_label("Across: setting").select_option("prompt")  # of another comparison, with commas in a value
    page.get_by_label("Across: values").fill("red, or so | blue")
    page.get_by_label("Across: words of the prompt to replace").fill("red")
    page.get_by_label("Down: setting").select_option("")
    page.click("text=What will it cost?")
    page.click("text=Make them")
    page.wait_for_function("document.querySelectorAll('#ldm-compare-grid img').length === 2")
    page.get_by_label("Across: setting").select_option("eta")
    page.get_by_label("Across: values").fill("1")
    go(page, "create")
    go(page, "compare")
    page.click("text=Earlier comparisons")
    page.click("#ldm-compare-earlier >> text=red, or so")
    expect(page.get_by_label("Across: setting")).to_have_value("prompt")
    expect(page.get_by_label("Across: values")).to_have_value("red, or so | blue |")
    expect(page.get_by_label("Across: words of the prompt to replace")).to_have_value("red")
    page.click("#ldm-compare-earlier >> text=Steps: 1, 2")
    expect(page.get_by_label("Across: values")).to_have_value("1, 2")
    expect(page.get_by_label("Down: values")).to_have_value("red, blue")
    page.wait_for_function("document.querySelectorAll('#ldm-compare-grid img').length === 4")


@pytest.mark.torture
def test_a_comparison_of_nothing_says_so(page: Page) -> None:
    go(page, "compare")
    for side in ("Across", "Down"):
        page.get_by_label(f"{side}: setting").select_option("")
    page.click("text=What will it cost?")
    expect(page.locator(".ldm-error")).to_contain_text("Choose a setting")
    page.get_by_label("Across: setting").select_option("steps")
    page.get_by_label("Across: values").fill("1, many")
    page.click("text=What will it cost?")
    expect(page.locator(".ldm-error").last).to_contain_text("many")


def test_an_adapter_is_brought_looked_at_used_and_removed(page: Page, site: Site) -> None:
    go(page, "models")
    expect(page.locator("#ldm-models [data-name='emoji']")).to_contain_text("comes with ldm")
    page.click("#ldm-models [data-name='emoji'] >> text=What it is")
    expect(page.locator("#ldm-models [data-name='emoji'] table").first).to_contain_text("draws best at")
    page.click("#ldm-models [data-name='emoji'] >> text=Details of the file")
    expect(page.locator("#ldm-models [data-name='emoji'] table").last).to_contain_text("fingerprint")
    file = find_adapter("emoji-fast")
    page.set_input_files("#ldm-models-bring input", files=[
        {"name": "mine.safetensors", "mimeType": "application/octet-stream", "buffer": file.read_bytes()}
    ])  # fmt: skip
    expect(page.locator("#ldm-models-told")).to_contain_text("mine is here: lora; it fits emoji")
    page.click("#ldm-models [data-name='mine'] >> text=Use it")
    go(page, "create")
    page.get_by_label("Weight of mine").fill("0.5")
    set_form(page, prompt="red apple", steps=2)
    made(page)
    assert site.service.jobs.list(limit=1)[0].asked["loras"] == [{"name": "mine", "weight": 0.5}]
    page.get_by_label("Without mine").click()
    go(page, "models")
    page.click("#ldm-models [data-name='mine'] >> text=Remove")
    expect(page.locator("#ldm-models [data-name='mine']")).to_have_count(0)
    page.set_input_files("#ldm-models-bring input", files=[
        {"name": "evil.safetensors", "mimeType": "application/octet-stream", "buffer": b"\x80\x04cos\nsystem\n."}
    ])  # fmt: skip
    expect(page.locator(".ldm-error")).to_contain_text("evil")
    assert "mine" not in site.service.catalog.adapters() and "evil" not in site.service.catalog.adapters()


def test_the_gallery_finds_shows_and_throws_away(page: Page, site: Site) -> None:
    for prompt in ("a red circle", "a blue square", "a blue circle"):
        set_form(page, **QUICK | {"prompt": prompt})
        made(page)
    go(page, "gallery")
    page.fill("#ldm-gallery-query", "blue CIRCLE")
    expect(page.locator("#ldm-gallery-grid .ldm-picture")).to_have_count(
        len([job for job in site.service.jobs.list() if "blue circle" in job.asked["prompt"]])
    )
    page.fill("#ldm-gallery-query", "blue")
    page.wait_for_selector("#ldm-gallery-grid >> text=a blue square")
    first = page.locator("#ldm-gallery-grid .ldm-frame").first
    first.click()
    expect(page.locator("#ldm-look table")).to_contain_text("a blue circle")
    page.go_back()  # closes it, and nothing else
    expect(page.locator("#ldm-look")).not_to_be_visible()
    assert shows(page, "gallery")
    first.click()
    page.keyboard.press("Escape")
    expect(page.locator("#ldm-look")).not_to_be_visible()
    page.wait_for_function("!history.state")
    first.click()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#ldm-look table")).to_contain_text("a blue square")
    page.click("#ldm-look >> text=Use settings")
    expect(page.locator("#ldm-f-prompt textarea")).to_have_value("a blue square")
    expect(page.locator("body")).to_have_attribute("data-section", "create")
    page.go_back()  # the section before, at once
    expect(page.locator("body")).to_have_attribute("data-section", "gallery")
    total = page.inner_text("#ldm-gallery-total")
    first.click()
    page.click("#ldm-look >> text=Delete")
    expect(page.locator("#ldm-gallery-total")).not_to_have_text(total)
    page.check("#ldm-gallery-trash")
    expect(page.locator("#ldm-gallery-grid .ldm-picture")).to_have_count(1)
    page.click("#ldm-gallery-grid >> text=Restore")
    expect(page.locator("#ldm-gallery-grid .ldm-picture")).to_have_count(0)
    page.uncheck("#ldm-gallery-trash")
    expect(page.locator("#ldm-gallery-total")).to_have_text(total)


def drawings() -> list[dict[str, object]]:
    """Five small pictures of one thing."""
    made = []
    for i in range(5):
        picture = Image.new("RGB", (48, 48), (240 - 10 * i, 235, 220))
        pen = ImageDraw.Draw(picture)
        pen.polygon([(8 + i, 40), (24, 6 + 2 * i), (40 - i, 40)], fill=(40, 90 + 20 * i, 200), outline=(0, 0, 0))
        pen.ellipse([18, 22 + i, 30, 34 + i], fill=(250, 220, 40))
        file = io.BytesIO()
        picture.save(file, "PNG")
        made.append({"name": f"drawing {i}.png", "mimeType": "image/png", "buffer": file.getvalue()})
    return made


@pytest.mark.torture
def test_five_drawings_become_an_adapter(page: Page, site: Site) -> None:
    go(page, "personalize")
    page.set_input_files("#ldm-photos-bring input", files=drawings())  # type: ignore[arg-type]
    expect(page.locator("#ldm-photos li")).to_have_count(5)
    page.fill("#ldm-learn-token", "sks tent")
    page.locator("#ldm-learn-model").select_option("scenes")
    page.fill("#ldm-learn-steps", "4")
    page.click("#ldm-learn-plan")
    expect(page.locator("#ldm-plan")).to_contain_text("4 steps", timeout=180_000)
    page.click("#ldm-plan >> text=Begin")
    page.wait_for_selector("#ldm-trainings >> text=Use it", timeout=240_000)
    page.reload()
    page.wait_for_selector("#ldm-trainings >> text=Report")
    expect(page.locator("#ldm-photos li")).to_have_count(5)
    report = page.request.get(page.get_attribute("#ldm-trainings >> text=Report", "href") or "")
    assert report.ok and "script-src" not in report.headers["content-security-policy"]
    expect(page.locator("#ldm-trainings .ldm-chart").last).to_contain_text("like your pictures")
    page.click("#ldm-trainings >> text=Use it")
    expect(page.locator("#ldm-f-prompt textarea")).to_have_value("sks tent")
    set_form(page, steps=2)
    made(page)
    job = site.service.jobs.list(limit=1)[0]
    assert job.state == "done" and len(job.asked["loras"]) == 1 and job.asked["model"] == "scenes"

"""The browser that other tests look through."""

from __future__ import annotations


def test_a_page_draws_and_its_faults_are_collected(page, tmp_path):
    file = tmp_path / "page.html"
    file.write_text("<title>t</title><p>text</p><script>console.error('planted'); missing()</script><img src='no.png'>")
    page.goto(file.as_uri())
    page.wait_for_load_state("load")
    assert page.inner_text("p") == "text"
    for part in ("planted", "missing is not defined", "no.png"):
        assert any(part in error for error in page.errors), part
    assert page.screenshot().startswith(b"\x89PNG")

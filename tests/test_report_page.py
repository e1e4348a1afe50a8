"""Law: the page of a report needs nothing else and runs nothing, whatever is written in it; pictures are functions."""

import io
import re
import sys
import threading

import pytest
from PIL import Image

from jax_mmreid.errors import ConfigError
from jax_mmreid.report import charts, markdown, settings
from jax_mmreid.report.page import Picture, Section, page

EVIL = "</title><script>alert(1)</script>\x1b\" onload='x' <img src=http://a/b>"


@pytest.fixture(scope="module")
def png():
    return charts.draw(lambda figure: figure.subplots().set_title(EVIL), width=3, height=2)


def test_all_text_is_escaped_and_nothing_is_loaded_or_run(png):
    tables = [(EVIL, [["", EVIL], [EVIL, "5"]])]
    found = page(EVIL, [Section(EVIL, EVIL, [Picture(EVIL, png, EVIL)], tables), Section("Other")])
    tags = set(re.findall(r"<([a-z0-9]+)", found))
    assert "script" not in tags and "\x1b" not in found
    assert len(re.findall(r"<img ", found)) == 1 and " onload=" not in re.sub(
        r'"[^"]*"', "", re.sub(r">[^<]*<", "><", found)
    )
    addresses = re.findall(r'(?:src|href)="([^"]*)"', found)
    assert len(addresses) == 4 and all(x.startswith(("data:", "#s")) for x in addresses)


def test_sections_have_links_and_a_table_may_have_no_head():
    found = page("t", [Section("A", "one\n\ntwo"), Section("B", tables=[("", [["", ""], ["x", "-1.5"]])])])
    assert re.findall(r'<a href="#(s\d)">(\w)</a>', found) == re.findall(r'id="(s\d)"><h2>(\w)</h2>', found)
    assert "<p>one</p><p>two</p>" in found and "<thead>" not in found
    assert '<td>x</td><td class="number">-1.5</td>' in found


def test_a_notebook_shows_a_section_as_the_page_does(png):
    section = Section(EVIL, EVIL, [Picture("a", png, EVIL)], [("", [["", EVIL], [EVIL, "5"]])])
    assert section._repr_html_() in page("t", [section])


def test_a_picture_has_the_size_that_was_asked_for_and_the_same_bytes_each_time(png):
    assert Image.open(io.BytesIO(png)).size == (3 * charts.DPI, 2 * charts.DPI)
    again = []
    thread = threading.Thread(
        target=lambda: again.append(charts.draw(lambda f: f.subplots().set_title(EVIL), width=3, height=2))
    )
    thread.start()
    thread.join()
    assert again == [png]


def test_lines_differ_and_logarithms_are_no_formulas():
    assert len({tuple(charts.line(i).items()) for i in range(32)}) == 32
    labels = []

    def paint(figure):
        axes = figure.subplots()
        axes.plot([1, 2], [0.3, 40])
        charts.log_scale(axes)
        figure.draw_without_rendering()
        labels.extend(label.get_text() for label in axes.get_yticklabels())

    charts.draw(paint)
    assert "10" in labels and not any("$" in label for label in labels)


def test_without_matplotlib_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ConfigError, match=r"pip install 'jax_mmreid\[report\]'"):
        charts.draw(lambda figure: None)


def test_tables_of_markdown_are_read_back_with_their_captions():
    head, lines = ["", "a", "b"], [["x", "1.0", None], ["", "", "3 %"]]
    table = "\n".join(settings.table(head, lines))
    heat = "\n".join(settings.heat_map("g: mAP", {("x", "x"): 0.5}, ("rgb",)))
    text, tables = markdown.captioned(f"One.\n\n{table}\n\nTwo lines\nof it.\n\n{heat}\n")
    assert text == "One.\n\nTwo lines of it."
    assert tables == [
        ("", [head, ["x", "1.0", ""], ["", "", "3 %"]]),
        ("g: mAP, rows query, columns gallery", [["", "x"], ["x", "▒ 50.0"]]),
    ]

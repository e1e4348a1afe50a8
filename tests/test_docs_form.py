"""Law: the form and the words of the README, docs/ and the changelog."""

import itertools
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from test_house import RANKS

import jax_mmreid

ROOT = Path(__file__).parent.parent
README, CHANGELOG = ROOT / "README.md", ROOT / "CHANGELOG.md"
PAGES = [README, *sorted(ROOT.glob("docs/*.md"))]
# Names and words that this project no longer uses.
FORMER = (
    r"strangers?|sought|posters?|completions?|completer|imagines?|coins|twins|ir_backup|tokenise|captures|whoever|nobody|"
    r"told|tells|says|said|dearest|--compare|the door|backups?|watched|remembers?|blends?|moments|"
    r"has not seen|cross_modal"
)


def test_the_readme_is_one_page():
    lines = README.read_text().splitlines()
    assert len(lines) <= 150
    assert max(map(len, lines)) <= 120


def test_the_readme_links_every_page():
    text = README.read_text()
    assert all(f"](docs/{page.name})" in text for page in PAGES if page != README)


@pytest.mark.parametrize("page", [*PAGES, CHANGELOG], ids=lambda page: page.name)
def test_pages_use_the_words_of_the_field(page):
    text = page.read_text()
    if page == CHANGELOG:  # where former names are renamed
        text = re.sub(r"`[^`]*`", "", text)
    found = re.findall(rf"(?<![\w-])({FORMER})(?![\w-])", text, re.I)
    assert not found, f"{page.name}: {found}"
    assert not re.search(r"(?<!\w)shared/|/work/|/tmp/|architecture\.md", text), page.name


@pytest.mark.parametrize("path", sorted(ROOT.glob("docs/*.svg")), ids=lambda path: path.name)
def test_pictures_are_well_formed_and_stand_alone(path):
    root = ElementTree.parse(path).getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    for node in root.iter():
        assert node.tag.rpartition("}")[2] not in ("image", "script", "foreignObject")
        assert all(not key.endswith("href") or value.startswith("#") for key, value in node.attrib.items())


def test_the_changelog_knows_this_version():
    text = CHANGELOG.read_text()
    assert "## [Unreleased]" in text
    assert jax_mmreid.__version__ in text


def test_the_page_states_the_import_law_that_is_tested():
    stated = re.findall(r"^\| (\d+) \| (`.*`) \|$", (ROOT / "docs/contributing.md").read_text(), re.M)
    for (number, names), tested in itertools.zip_longest(stated, enumerate(RANKS)):
        exist = {x for x in tested[1].split() if list((ROOT / "jax_mmreid").glob(f"{x}*"))}
        assert (int(number), set(re.findall(r"`(\w+)`", names))) == (tested[0], exist)

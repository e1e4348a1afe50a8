"""Ranked lists: those of the definition with ties and junk, the ranking that is scored, and shares that add up."""

import types

import numpy as np
import pytest
from brute import people, problems, ranked, ranks
from conftest import open_tiny, tiny_tvi_config
from hypothesis import given, settings
from own_gallery import run, write_random_run
from random_run import few
from scored import DEFINITIONS, QUERY, SIDES, arrays, cosine, rows
from test_report_command import write_manifest

from jax_mmreid.errors import ConfigError
from jax_mmreid.evaluators.encoder import Side
from jax_mmreid.metrics import device_ranking, ranking, vectors
from jax_mmreid.metrics.protocols import PROTOCOLS
from jax_mmreid.metrics.ranking import Ranks
from jax_mmreid.recipes.miss_reid import miss_reid
from jax_mmreid.report import charts, lists, sides
from jax_mmreid.report import failures as failing
from jax_mmreid.report import ranked as drawing
from jax_mmreid.sharding import make_mesh
from jax_mmreid.tools import report
from jax_mmreid.tools import score as scoring

WHOLE = 1000  # more rows than any gallery here has


@settings(max_examples=120, deadline=None, database=None)
@given(problems())
def test_the_order_of_a_query_and_its_precision_are_those_of_the_definition(problem):
    dist, rows = problem
    found = ranks(dist, rows)
    for q in range(len(dist)):
        assert ranking.order(dist[q], rows, q).tolist() == ranked(dist, rows, q)
    width = max(len(hits) for hits, _ in found)
    hits = np.array([hits + [0] * (width - len(hits)) for hits, _ in found], np.int64)
    got = ranking.average_precisions(Ranks(hits, np.array([first for _, first in found])))
    expected = [np.mean([n / r for n, r in enumerate(hits, 1)]) if hits else np.nan for hits, _ in found]
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("devices", [1, 8])
def test_scores_of_chosen_queries_have_the_ranks_that_are_counted(devices):
    """Many queries, so that they come in blocks; duplicates in the gallery, so that equal scores decide."""
    query, gallery, rows = people(3, 300, 170)
    mesh = make_mesh(data=devices, model=1)
    chosen = np.array([299, 0, 17, *range(20, 280)])
    scores = device_ranking.scores(query, gallery, rows, mesh, chosen)
    counted = device_ranking.ranks(query, gallery, rows, mesh)
    np.testing.assert_allclose(scores, np.where(np.isinf(scores), scores, query[chosen] @ gallery.T), atol=1e-6)
    for q, own in zip(chosen, scores):
        order = ranking.order(-own, rows, q)
        assert np.isinf(own).sum() == len(own) - len(order)
        hits = 1 + np.flatnonzero(rows.gallery_pid[order] == rows.query_pid[q])
        assert hits.tolist() == counted.hits[q][counted.hits[q] > 0].tolist()
    assert device_ranking.scores(query, gallery, rows, mesh, chosen[:0]).shape == (0, 170)


def of_files(query, gallery, junk):
    """A row, its sides and what sections look at, of vectors that came in files; all of a vector is one term."""
    columns = {
        split: {name.removesuffix("s"): x for name, x in side.items() if name not in ("features", "paths")}
        for split, side in (("q", query), ("g", gallery))
    }
    unit = [side["features"] / np.linalg.norm(side["features"], axis=1, keepdims=True) for side in (query, gallery)]
    relevance = ranking.relevance(junk, *columns.values())
    places = [np.arange(len(x)) for x in unit]
    both = sides.Sides((Side("q", ("rgb",)), Side("g", ("rgb",))), places, list(map(vectors.on_host, unit)), relevance)
    encoder = types.SimpleNamespace(method=types.SimpleNamespace(modalities=("rgb",)), mesh=make_mesh(data=1, model=1))
    encoder.terms = lambda split, use, options, rows, mixed: {"rgb": unit[0][rows]}
    data = types.SimpleNamespace(columns=columns.get)
    row = dict(query=dict(split="q", use=("rgb",)), gallery=dict(split="g", use=("rgb",)), junk=junk)
    return row, both, types.SimpleNamespace(encoder=encoder, data=data, mesh=encoder.mesh)


def of_lists(found):
    """The metrics of whole lists, counted rank by rank."""
    precisions, firsts = [], []
    for one in found:
        hits = 1 + np.flatnonzero(one.matches)
        if len(hits):
            precisions.append(np.mean(np.arange(1, len(hits) + 1) / hits))
            firsts.append(hits[0])
    return {"mAP": np.mean(precisions)} | {f"rank{r}": np.mean(np.array(firsts) <= r) for r in (1, 5, 10)}


@pytest.mark.parametrize("protocol", DEFINITIONS)
def test_lists_are_those_of_the_protocol_with_ties_and_junk(protocol):
    hidden, by_identity = DEFINITIONS[protocol]
    gallery = rows("gallery", 53, 2, (2, 3, 6))
    row, both, subject = of_files(SIDES[0], arrays(gallery), PROTOCOLS[protocol].junk)
    found = lists.read(row, both, subject.encoder, range(len(QUERY)), WHOLE)
    ties = 0
    for q, one in zip(QUERY, found):
        seen = sorted((cosine(q, g), i) for i, g in enumerate(gallery) if not hidden(q, g))
        assert one.gallery.tolist() == [i for _, i in seen]
        assert one.matches.tolist() == [gallery[i].pid == q.pid for _, i in seen]
        ties += sum(a == b for (a, _), (b, _) in zip(seen, seen[1:]))
    assert ties > 500 and (protocol == "regdb" or min(len(one.gallery) for one in found) < 53)
    metrics = scoring.score(SIDES[0], arrays(gallery), protocol, trials=0)
    expected = of_lists(found)
    for name in ["mAP"] if by_identity else expected:
        assert metrics[name] == pytest.approx(expected[name], abs=1e-12)


@pytest.fixture(scope="module")
def workdir(drawn, tmp_path_factory):
    """Random weights, with the text features of the last phase from the start."""
    config = few(drawn)
    config.phases = ((0, *config.phases[-1][1:]),)
    return write_random_run(tmp_path_factory.mktemp("run"), config)


def opened(workdir, **changes):
    """What sections look at: a model of random weights and its data, with changes of all rows."""
    found = report.open_run(workdir)
    with found.config.unlocked():
        for name, row in found.config.evals.items():
            found.config.evals[name] = row.to_dict() | changes
    return report.subject_of(found)


@pytest.fixture(scope="module")
def subject(workdir):
    return opened(workdir)


def read(subject, name, k=WHOLE):
    row = subject.rows[name]
    both = sides.read(row, subject.encoder)
    return both, lists.read(row, both, subject.encoder, range(len(both.rows[0])), k)


def test_lists_are_the_ranking_of_the_vectors_that_are_embedded(workdir, subject, tmp_path):
    """Id by id, and in every number, what tools.score makes of the file that tools.embed writes."""
    file = tmp_path / "test.npz"
    assert run("embed", f"--workdir={workdir}", f"--features={file}", "--split=test") == 0
    stored = scoring.read(file)
    both, found = read(subject, "full")
    own = scoring._side("query", stored, "rgbnt201", "cosine")
    relevance = ranking.relevance("same_camera", own.columns, own.columns)
    mesh = make_mesh(data=-1, model=1)
    scores = device_ranking.scores(own.features, own.features, relevance, mesh, np.arange(30))
    for i, one in enumerate(found):
        assert one.query == i and one.gallery.tolist() == ranking.order(-scores[i], relevance, i).tolist()
        assert i not in one.gallery  # a picture is junk for itself
    metrics, expected = scoring.score(stored, None, "rgbnt201"), of_lists(found)
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("changes", [{}, {"similarity": "common"}], ids=str)
def test_shares_add_up_to_the_score(workdir, changes):
    subject = opened(workdir, **changes)
    _, found = read(subject, "no_rt", k=7)
    for one, whole in zip(found, read(subject, "no_rt")[1]):
        assert sum(one.typical.values()) == pytest.approx(whole.scores.mean(), abs=1e-6) and len(whole.scores) > 20
        assert list(one.shares) == (["nir"] if changes else ["imputed rgb", "nir", "imputed tir"])
        np.testing.assert_allclose(sum(one.shares.values()), one.scores, rtol=0, atol=1e-6)
        assert len(one.gallery) == len(one.scores) == len(one.matches) == 7 and (np.diff(one.scores) <= 0).all()


def test_a_pair_with_nothing_in_common_has_its_whole_score_from_there(workdir):
    found = report.open_run(workdir)
    row = found.config.evals["full"].to_dict() | {"similarity": "common"}
    mixed = {side: row[side] | {"mixed": seed} for side, seed in (("query", 1), ("gallery", 2))}
    with found.config.unlocked():
        found.config.evals = {"mixed": row | mixed}
    _, found = read(report.subject_of(found), "mixed")
    apart = np.concatenate([one.shares.get(lists.APART, np.zeros(len(one.scores))) != 0 for one in found])
    assert 0.05 < apart.mean() < 0.6
    for one in found:
        np.testing.assert_allclose(sum(one.shares.values()), one.scores, rtol=0, atol=1e-6)
        others = [m for m in one.shares if m != lists.APART]
        assert others and not any(one.shares[m][one.shares.get(lists.APART, 0) != 0].any() for m in others)


@pytest.fixture
def painted(monkeypatch):
    """The texts of every figure that is drawn."""
    texts, draw = [], charts.draw

    def record(paint, **size):
        def paint_and_look(figure):
            paint(figure)
            texts.append([x.get_text() for x in figure.findobj(lambda x: hasattr(x, "get_text"))])

        return draw(paint_and_look, **size)

    monkeypatch.setattr(charts, "draw", record)
    return texts


@pytest.fixture
def small(monkeypatch):
    """Short lists of few queries."""
    for name, value in (("LENGTH", 3), ("RANDOM", 1), ("WORST", 1)):
        monkeypatch.setattr(drawing, name, value)


@pytest.mark.slow
def test_a_picture_shows_the_lists_and_marks_what_is_right(subject, painted, small):
    section = drawing.section(subject, [4])
    queries = [int(picture.name.removeprefix("ranked_test_")) for picture in section.pictures]
    assert queries[0] == 4 and len(set(queries)) == 3
    for texts, picture, query in zip(painted, section.pictures, queries):
        best = [read(subject, name, drawing.LENGTH)[1][query] for name in ("full", "no_rt")]
        matches = np.concatenate([one.matches for one in best])
        found = [sum(mark in text for text in texts) for mark in "✓✗"]
        assert found == [matches.sum(), len(matches) - matches.sum()] and len(matches) == 6
        assert "full (rgb+nir+tir)" in picture.caption and "no_rt (nir)" in picture.caption
        assert f"row {query} of test" in picture.caption.lower()
    row = subject.rows["full"]
    precisions = ranking.average_precisions(lists.ranks(row, sides.read(row, subject.encoder), subject.encoder))
    assert precisions[queries[2]] == np.delete(precisions, queries[:2]).min()


def test_a_missing_picture_is_shown_as_missing(workdir, drawn, small, painted, monkeypatch):
    """In a data set of its own, in which no row has all three."""
    config = write_manifest(drawn, workdir.parent / "manifest")
    found = report.open_run(workdir, file=str(config), overrides=[f"data.data_dir={config.parent}"])
    subject = report.subject_of(found, ["full"])
    monkeypatch.setattr(drawing, "WORST", 0)
    section = drawing.section(subject)
    for texts, picture in zip(painted, section.pictures):
        (one,) = lists.read(
            subject.rows["full"],
            both := sides.read(subject.rows["full"], subject.encoder),
            subject.encoder,
            [int(picture.name.rpartition("_")[2])],
            drawing.LENGTH,
        )
        shown = np.stack(list(subject.data.present("test").values()))
        assert texts.count("missing") == (~shown[:, [one.query, *one.gallery]]).sum() > 0
        assert len(both.rows[0]) == 30


def test_a_query_that_has_nothing_of_what_is_used_is_refused(workdir, drawn):
    config = write_manifest(drawn, workdir.parent / "other")
    found = report.open_run(workdir, file=str(config), overrides=[f"data.data_dir={config.parent}"])
    subject = report.subject_of(found, ["full"])
    nir = {side: dict(split="test", use=("nir",)) for side in ("query", "gallery")}
    subject = subject._replace(rows={"nir": subject.rows["full"] | nir})
    missing = int(np.flatnonzero(~subject.data.present("test")["nir"])[0])
    with pytest.raises(ConfigError, match=rf"^row {missing} of test has nothing to ask with \(nir\); choose others$"):
        drawing.section(subject, [missing])


def test_errors_are_those_of_the_definition():
    query, gallery, relevance = people(4, 90, 60, spread=0.6)
    sides_ = [dict(features=x, pids=pid) for x, pid in ((query, relevance.query_pid), (gallery, relevance.gallery_pid))]
    camids = np.random.default_rng(0).integers(1, 4, 150)
    sides_[0]["camids"], sides_[1]["camids"] = camids[:90], camids[90:]
    row, both, subject = of_files(*sides_, "same_camera")
    order = [ranked(-(query @ gallery.T).astype(np.float64), both.relevance, q) for q in range(90)]
    pids = relevance.query_pid
    valid = [q for q in range(90) if pids[q] in relevance.gallery_pid[order[q]]]
    wrong = {q: relevance.gallery_pid[order[q][0]] for q in valid if relevance.gallery_pid[order[q][0]] != pids[q]}
    found = failing.outcomes(row, both, subject)
    assert found.rows.tolist() == valid and found.places[found.wrong].tolist() == list(wrong)
    assert 5 < len(wrong) < len(valid) < 90
    by_camera = failing.by(found, camids[:90][found.rows])
    assert [(x.name, x.queries, x.wrong) for x in by_camera] == [
        (str(c), sum(camids[q] == c for q in valid), sum(camids[q] == c for q in wrong)) for c in (1, 2, 3)
    ]
    for x in by_camera:
        assert 0 <= x.interval[0] < x.error < x.interval[1] <= 1
    some = sorted({pids[q] for q in wrong})
    for pid, words in zip(some, failing.taken_for(both, found, subject, some)):
        counts = dict(map(str.split, words.split(", ")))
        own = [str(wrong[q]) for q in wrong if pids[q] == pid]
        assert counts == {other: f"({own.count(other)})" for other in own}
        assert list(counts) == sorted(counts, key=lambda x: (-own.count(x), int(x)))


def test_errors_are_counted_for_every_setting_and_identity(subject, painted):
    section = failing.section(subject)
    by_camera, by_modalities, worst = (table for _, table in section.tables)
    assert [line[0] for line in by_modalities[1:]] == ["full: rgb+nir+tir", "no_t: rgb+nir", "no_rt: nir"]
    assert [line[1] for line in by_modalities[1:]] == 3 * ["30"]
    assert [sum(int(line[1]) for line in table[1:]) for table in (by_camera, worst)] == [30, 30]
    assert sum(int(line[2]) for line in by_camera[1:]) == int(by_modalities[1][2])
    assert {"by camera", "by modalities", "by identity"} <= {*painted[0]}


def test_rows_that_are_worth_comparing():
    evals = tiny_tvi_config("").evals.to_dict()
    assert [*drawing.compared(evals, "all/fusion")] == ["ir", "text", "fusion", "mer"]
    evals = miss_reid("rgbnt201", pairs=True).evals.to_dict()
    shown = {name: row for name, row in evals.items() if "query" in row}
    assert [*drawing.compared(shown, sides.widest(shown))] == ["full", "no_rn"]
    assert [*drawing.compared({"alone": shown["full"] | {"setting": "alone"}}, "alone")] == ["alone"]


@pytest.mark.slow
def test_lists_of_image_text_fusion_and_ensemble_are_under_each_other(drawn_sysu, tmp_path, painted, small):
    workdir = write_random_run(tmp_path / "run", tiny_tvi_config(drawn_sysu))
    subject = report.subject_of(report.open_run(workdir))
    section = drawing.section(subject)
    assert "first draw" in section.text and len(section.pictures) == 2
    for texts in painted:
        joined = " ".join(" ".join(texts).split())
        heads = ["ir (ir > rgb): ", "text (text > rgb): ", "fusion (ir+text > rgb): ", "mer (ir+text > rgb): "]
        assert all(part in joined for part in (*heads, "captions only", "-text/ir", "text/rgb"))
        assert joined.count("rgb: “") == joined.count("ir: “") == 3 and "missing" not in joined
    assert all("ir (ir > rgb) and text" in picture.caption for picture in section.pictures)
    for name, shares in (("ir", 1), ("text", 1), ("fusion", 3), ("mer", 3)):
        for one in read(subject, f"all/{name}", k=5)[1]:
            np.testing.assert_allclose(sum(one.shares.values()), one.scores, rtol=0, atol=1e-6)
            assert len(one.shares) == shares and list(one.shares)[-1] == {1: name, 3: "-text/ir"}[shares]


def test_pictures_and_sentences_of_rows_are_those_of_the_split(drawn_sysu):
    data = open_tiny(tiny_tvi_config(drawn_sysu))
    (batch,) = data.split("query")
    rows = np.array([3, 0, 3])
    images, present = data.pictures("query", rows)
    assert list(images) == list(present) == ["rgb", "ir"]
    np.testing.assert_array_equal(images["ir"], batch["images"]["ir"][rows])
    assert not images["rgb"].any() and not present["rgb"].any() and present["ir"].all()
    sentences = data.sentences("query", rows)
    for m, ids in batch["text"].items():
        np.testing.assert_array_equal(data.tokenize(sentences[m])[:, : ids.shape[1]], ids[rows])

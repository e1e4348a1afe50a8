"""Who may call the service, and the command that serves it. No server runs; requests enter the app."""

import re
import sys

import pytest
from served import ALL, client, form, make_engine

pytest.importorskip("fastapi", reason="needs the web extra")

from jax_mmreid.errors import ConfigError
from jax_mmreid.search import guard, service
from jax_mmreid.tools import serve


@pytest.fixture
def two(tmp_path):
    """An engine over two entries."""
    return make_engine(tmp_path / "store", [(1, ALL), (2, ALL)])


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("127.0.0.1:8000", True),
        ("localhost", True),
        ("[::1]:80", True),
        ("LOCALHOST:1", True),
        ("evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("192.168.0.7:8000", False),
        ("", False),
        ("[::1", False),
        ("user@evil.example", False),
    ],
)
def test_without_tokens_the_host_must_be_this_machine(two, host, allowed):
    with client(two) as service:
        for path in ("/", "/page.js", "/api/gallery", "/openapi.json"):
            answer = service.get(path, headers={"host": host})
            assert answer.status_code == (200 if allowed else 403)
            assert allowed or "error" in answer.json()


def test_other_machines_are_refused_without_a_token_whatever_they_say(two):
    for address in ("192.168.0.9", "10.1.2.3", "fe80::1", ""):
        with client(two, address=address) as service:
            for path in ("/", "/api/gallery", "/nothing"):
                answer = service.get(path, headers={"host": "127.0.0.1", "x-forwarded-for": "127.0.0.1"})
                assert answer.status_code == 401 and "a token is needed" in answer.json()["error"]


def test_tokens_open_the_service_from_anywhere_and_name_the_caller(two):
    tokens = {"desk": "abcdefgh12345678", "phone": "abcdefgh12345679"}
    with client(two, tokens, address="10.1.2.3", host="search.example") as service:
        for path in ("/", "/page.css", "/api/gallery", "/openapi.json", "/api/entries/0/thumbnail", "/nothing"):
            for header in (
                None,
                "Bearer",
                "Bearer abcdefgh1234567",
                "Bearer abcdefgh12345678x",
                "Basic !",
                "Basic QQ==",
            ):
                answer = service.get(path, headers={} if header is None else {"authorization": header})
                assert answer.status_code == 401 and answer.headers["www-authenticate"].startswith("Basic ")
        for name, token in tokens.items():
            for given in (dict(headers={"authorization": f"bearer {token}"}), dict(auth=("whoever", token))):
                assert service.get("/api/gallery", **given).json()["caller"] == name
        assert service.post("/api/search", files=form(1, "rgb")).status_code == 401
    assert not any(line["action"] == "search" for line in two.store.audit())


def test_pages_of_other_sites_may_neither_read_nor_write(two):
    with client(two) as service:
        for origin in ("http://evil.example", "null", "http://127.0.0.1:9999", "http://[", ""):
            answer = service.post("/api/entries", files=form(9, "rgb"), headers={"origin": origin})
            assert answer.status_code == 403 and "may not use the service" in answer.json()["error"]
        answer = service.post("/api/search", files=form(1, "rgb"), headers={"origin": "http://127.0.0.1:8000"})
        assert answer.status_code == 200
        answers = [answer, service.options("/api/search", headers={"origin": "http://127.0.0.1:8000"})]
        answers += [service.get(path) for path in ("/", "/api/gallery", "/nothing", "/api/entries/99")]
    assert len(two.store) == 2
    for answer in answers:
        assert not [name for name in answer.headers if name.startswith("access-control")]
        for name, value in guard.HEADERS.items():
            assert answer.headers[name] == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no token"),
        ("# only this\n\n", "holds no token"),
        ("abcdefgh12345678", "line 1: expected NAME:TOKEN"),
        ("a:abcdefgh12345678\na:abcdefgh12345679", "line 2: expected NAME:TOKEN, each name once"),
        ("a:short", "line 1: the token of a has under 16 characters"),
        ("a:abcdefgh 12345678", "line 1: expected NAME:TOKEN"),
    ],
)
def test_token_files_that_cannot_be_used_are_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        guard.parse_tokens(text, "file")


def test_token_files_hold_names_tokens_and_comments():
    text = "# tokens\n\ndesk:abc:efgh12345678\nanna@x.example:ABCDEFGH12345678\n"
    assert guard.parse_tokens(text, "file") == {"desk": "abc:efgh12345678", "anna@x.example": "ABCDEFGH12345678"}


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--host=0.0.0.0"], 2, "can be reached from other machines, so a token is needed; write NAME:TOKEN"),
        (["--host=::"], 2, "a token is needed"),
        (["--host=0.0.0.0", "--token_file=nothing"], 2, "cannot be read \\(No such file"),
        (["--megapixels=0"], 2, "must be above 0"),
        (["--mebibytes=nan"], 2, "must be above 0"),
        ([], 2, "holds no run"),
    ],
)
def test_the_command_refuses_what_it_cannot_serve(tmp_path, capsys, monkeypatch, flags, code, message):
    monkeypatch.delenv(serve.TOKENS, raising=False)
    paths = [f"--workdir={tmp_path / 'run'}", f"--gallery={tmp_path / 'store'}"]
    assert serve.main([*paths, *flags]) == code
    err = capsys.readouterr().err
    assert err.startswith("serve: ") and err.count("\n") == 1 and re.search(message, err)


def test_tokens_come_from_the_file_or_the_environment(tmp_path, monkeypatch):
    (tmp_path / "tokens").write_text("desk:abcdefgh12345678\n")
    monkeypatch.setenv(serve.TOKENS, "phone:abcdefgh12345679")
    assert serve.read_tokens(str(tmp_path / "tokens"), "127.0.0.1") == {"desk": "abcdefgh12345678"}
    assert serve.read_tokens("", "0.0.0.0") == {"phone": "abcdefgh12345679"}
    monkeypatch.delenv(serve.TOKENS)
    assert all(serve.read_tokens("", host) == {} for host in ("127.0.0.1", "::1", "localhost"))


def test_an_address_that_is_taken_is_named():
    with serve.bind("127.0.0.1", 0) as taken, pytest.raises(ConfigError, match="--port=.*[Aa]ddress already in use"):
        serve.bind("127.0.0.1", taken.getsockname()[1])


def test_without_the_extra_the_way_to_it_is_named(two, monkeypatch):
    for name in ("fastapi", "python_multipart"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, name, None)
            with pytest.raises(ConfigError, match=r"pip install 'jax-mmreid\[web\]'"):
                service.create_app(two)

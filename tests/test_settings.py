"""Settings: where values come from, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.settings import Audit, Backend, Settings, SettingsError, Source, load, mask, split_listen


def loaded(tmp_path: Path, toml: str = "", environment: dict[str, str] | None = None, **flags: object) -> Settings:
    file = tmp_path / "hutch.toml"
    file.write_text(toml)
    return load(file, environment=environment or {}, flags={key.replace("__", "."): value for key, value in flags.items()})


def test_everything_has_a_default(tmp_path: Path) -> None:
    settings = loaded(tmp_path)
    assert settings.server.listen == "127.0.0.1:7070"
    assert settings.sandbox.default_timeout_ms == 300_000
    assert settings.source_of("server.listen") == (Source.DEFAULT, "")
    assert settings.database_url() == "sqlite:////var/lib/hutch/control/hutch.db"


def test_flag_beats_variable_beats_file_beats_default(tmp_path: Path) -> None:
    toml = "[pool]\nsize = 3\n[server]\nlisten = '127.0.0.1:1'\nuser = 'somebody'\n"
    environment = {"HUTCH_POOL__SIZE": "4", "HUTCH_SERVER__LISTEN": "127.0.0.1:2", "HUTCH_URL": "http://x", "PATH": "/bin"}
    settings = loaded(tmp_path, toml, environment, server__listen="127.0.0.1:3", pool__size=None)
    assert (settings.server.listen, settings.pool.size, settings.server.user) == ("127.0.0.1:3", 4, "somebody")
    assert settings.source_of("server.listen")[0] is Source.FLAG
    assert settings.source_of("pool.size") == (Source.ENVIRONMENT, "HUTCH_POOL__SIZE")
    assert settings.source_of("server.user") == (Source.FILE, str(tmp_path / "hutch.toml"))


def test_the_file_may_be_named_by_a_variable(tmp_path: Path) -> None:
    file = tmp_path / "other.toml"
    file.write_text("[pool]\nsize = 7")
    assert load(environment={"HUTCH_CONFIG": str(file)}).pool.size == 7


@pytest.mark.parametrize("text", ["a,b", '["a", "b"]', " a , b "])
def test_lists_are_json_or_commas(tmp_path: Path, text: str) -> None:
    assert loaded(tmp_path, environment={"HUTCH_POOL__IMAGES": text}).pool_images() == ("a", "b")


def test_the_egress_section_takes_what_hermetic_tests_need(tmp_path: Path) -> None:
    environment = {
        "HUTCH_EGRESS__DNS_UPSTREAMS": '["198.51.100.53:53", "[2001:db8::53]:5353"]',
        "HUTCH_EGRESS__EXTRA_TRUST_ROOTS": "roots.pem",
        "HUTCH_EGRESS__ALLOW_PRIVATE": "10.20.0.0/16, fd00:1::/32",
        "HUTCH_EGRESS__AUDIT": "denials",
    }
    egress = loaded(tmp_path, environment=environment).egress
    assert egress.dns_upstreams == ("198.51.100.53:53", "[2001:db8::53]:5353")
    assert egress.extra_trust_roots == Path("roots.pem").absolute()
    assert egress.allow_private == ("10.20.0.0/16", "fd00:1::/32")
    assert egress.audit is Audit.DENIALS
    assert loaded(tmp_path, environment={"HUTCH_EGRESS__POLICY": "policy.json"}).egress.policy == Path("policy.json").absolute()
    plain = loaded(tmp_path).egress
    assert (plain.dns_upstreams, plain.extra_trust_roots, plain.allow_private, plain.audit) == ((), None, (), Audit.ALL)


def test_without_pool_images_the_default_image_has_one(tmp_path: Path) -> None:
    assert loaded(tmp_path).pool_images() == ("vercel/sandbox/universal:latest",)


@pytest.mark.parametrize(
    ("toml", "environment", "expected"),
    [
        ("[pool]\nsize = -1", {}, ["hutch.toml", "`pool.size`", "-1", "greater than or equal to 0"]),
        ("[pool]\nsizes = 1", {}, ["no key `pool.sizes`", "size"]),
        ("[pools]\nsize = 1", {}, ["no section `pools`", "pool"]),
        ("size = 1", {}, ["must be a section"]),
        ("[pool", {}, ["not valid TOML"]),
        ("", {"HUTCH_POOL__SIZE": "many"}, ["HUTCH_POOL__SIZE", "'many'"]),
        ("", {"HUTCH_POOL__IMAGES": "[1"}, ["HUTCH_POOL__IMAGES", "JSON"]),
        ("", {"HUTCH_NO__SUCH": "1"}, ["HUTCH_NO__SUCH", "no section `no`"]),
        ("", {"HUTCH_SERVER__LISTEN": "here"}, ["HOST:PORT"]),
        ("", {"HUTCH_SERVER__PUBLIC_URL": "ftp://x"}, ["http://"]),
        ("", {"HUTCH_ISOLATION__BACKEND": "docker"}, ["docker", "gvisor"]),
        ("", {"HUTCH_DATABASE__URL": "mysql://x"}, ["sqlite://"]),
        ("[egress]\ndns_upstreams = ['198.51.100.53']", {}, ["`egress.dns_upstreams`", "198.51.100.53", "ADDR:PORT"]),
        ("", {"HUTCH_EGRESS__DNS_UPSTREAMS": "dns.example:53"}, ["dns.example:53", "ADDR:PORT"]),
        ("", {"HUTCH_EGRESS__DNS_UPSTREAMS": '["198.51.100.53:0"]'}, ["port 0"]),
        ("", {"HUTCH_EGRESS__ALLOW_PRIVATE": "10.20.0.1/16"}, ["10.20.0.1/16", "range"]),
        ("", {"HUTCH_EGRESS__ALLOW_PRIVATE": "intranet"}, ["intranet", "range"]),
        ("", {"HUTCH_EGRESS__AUDIT": "none"}, ["'none'", "denials"]),
        ("[sandbox]\ndefault_timeout_ms = 5000\nmax_timeout_ms = 1000", {}, ["default_timeout_ms (5000)"]),
    ],
)
def test_what_cannot_be_meant_is_refused_with_key_value_and_source(
    tmp_path: Path, toml: str, environment: dict[str, str], expected: list[str]
) -> None:
    with pytest.raises(SettingsError) as refused:
        loaded(tmp_path, toml, environment)
    assert refused.value.code == "invalid_configuration"
    for text in expected:
        assert text in refused.value.message


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="can't be read"):
        load(tmp_path / "none.toml", environment={})


def test_secrets_are_masked_where_they_are_shown(tmp_path: Path) -> None:
    settings = loaded(tmp_path, environment={"HUTCH_DATABASE__URL": "postgresql://u:s3cret@h/d"})
    shown = {value.key: value for value in settings.effective()}
    assert "s3cret" not in str(shown["database.url"].value)
    assert settings.database_url() == "postgresql://u:s3cret@h/d"
    with pytest.raises(SettingsError) as refused:
        loaded(tmp_path, environment={"HUTCH_DATABASE__URL": "mysql://u:s3cret@h/d"})
    assert "s3cret" not in refused.value.message
    keys = {"HUTCH_BLOBS__ACCESS_KEY_ID": "s3cret", "HUTCH_BLOBS__SECRET_ACCESS_KEY": "s3cret"}
    blobs = {value.key: value.value for value in loaded(tmp_path, environment=keys).effective() if value.key.startswith("blobs.")}
    assert "s3cret" not in str(blobs)
    assert blobs["blobs.secret_access_key"] == blobs["blobs.access_key_id"] != ""


@pytest.mark.parametrize("url", ["", "local", "file:///x", "s3://bucket", "s3://bucket/a/b"])
def test_urls_of_blob_stores(tmp_path: Path, url: str) -> None:
    assert loaded(tmp_path, blobs__url=url).blobs.url == url


@pytest.mark.parametrize("url", ["x", "file://x/y", "file:x", "s3:///x", "s3://", "http://x/y", "/x"])
def test_what_is_no_url_of_a_blob_store_is_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(SettingsError, match=r"blobs\.url"):
        loaded(tmp_path, blobs__url=url)


def test_a_change_after_loading_is_impossible(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="frozen"):
        loaded(tmp_path).pool.size = 5  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("127.0.0.1:0", ("127.0.0.1", 0)),
        ("[::1]:70", ("::1", 70)),
        ("localhost:65535", ("localhost", 65535)),
        ("0.0.0.0:1", ("0.0.0.0", 1)),
    ],
)
def test_listen_addresses(text: str, result: tuple[str, int]) -> None:
    assert split_listen(text) == result


@pytest.mark.parametrize("text", ["", ":", "1", "h:", ":1", "h:65536", "h:-1", "::1:70", "[x]:1", "h:²"])
def test_bad_listen_addresses(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        split_listen(text)


@given(st.text())
def test_masking_never_fails(value: str) -> None:
    assert isinstance(mask("database.url", value), str)


def test_the_backend_is_one_of_those_there_are(tmp_path: Path) -> None:
    assert loaded(tmp_path, isolation__backend="qemu").isolation.backend is Backend.QEMU


def test_a_section_inside_a_section(tmp_path: Path) -> None:
    (tmp_path / "hutch.toml").write_text('[isolation]\nminimum = "qemu"\n[isolation.firecracker]\nbinary = "/a"\nkernel = "/k"\n')
    loaded_ = load(
        tmp_path / "hutch.toml",
        environment={"HUTCH_ISOLATION__FIRECRACKER__BINARY": "/b", "HUTCH_ISOLATION__FIRECRACKER__JAILER": "/j"},
        flags={"isolation.firecracker.jailer": "/f"},
    )
    found = loaded_.isolation.firecracker
    assert (found.binary, found.jailer, found.kernel) == (Path("/b"), Path("/f"), Path("/k"))
    shown = {value.key: (value.value, value.source) for value in loaded_.effective()}
    assert shown["isolation.firecracker.binary"] == (Path("/b"), Source.ENVIRONMENT)
    assert shown["isolation.firecracker.kernel"] == (Path("/k"), Source.FILE)
    assert shown["isolation.firecracker.boot_timeout_s"] == (120, Source.DEFAULT)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[isolation]\nfirecracker = "/a"\n', "`isolation.firecracker` must be a section"),
        (
            '[isolation.firecracker]\nbinry = "/a"\n',
            "no key `isolation.firecracker.binry`; the keys of `isolation.firecracker` are",
        ),
        ("[isolation.firecracker]\nboot_timeout_s = 0\n", "`isolation.firecracker.boot_timeout_s` is 0, but"),
        ('[isolation.firecracker]\nkernel_args = "a\\nb"\n', "must be one line of printable ASCII"),
    ],
)
def test_a_bad_key_of_an_inner_section_is_named_whole(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "hutch.toml").write_text(text)
    with pytest.raises(SettingsError, match=re.escape(said)):
        load(tmp_path / "hutch.toml", environment={})

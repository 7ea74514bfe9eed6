"""Settings: where they come from, in which order, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel, SecretStr

from featurestore.errors import ConfigError
from featurestore.settings import load_settings, shown


def write(root: Path, text: str = 'project = "shop"\n') -> Path:
    root.mkdir(exist_ok=True)
    (root / "featurestore.toml").write_text(text, encoding="utf-8")
    return root


def fault(root: Path, **environ: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_settings(root, environ)
    return str(caught.value)


def test_a_name_is_all_a_repository_must_say(tmp_path: Path) -> None:
    settings = load_settings(write(tmp_path), {})
    assert (settings.project, settings.root) == ("shop", tmp_path)
    assert settings.registry.path == tmp_path / "data" / "registry.db"
    assert settings.offline.path == tmp_path / "data" / "offline.duckdb"
    assert settings.definitions.path == tmp_path / "definitions"
    assert settings.serving.port == 6566
    assert settings.offline.threads >= 1


def test_later_places_win(tmp_path: Path) -> None:
    """Default < file < environment < file named by the environment."""
    root = write(tmp_path, 'project = "shop"\n[serving]\nport = 1\nhost = "a"\nmax_keys = 5\n')
    (tmp_path / "port.txt").write_text("3\n")
    environ = {"FEATURESTORE_SERVING_PORT": "2", "FEATURESTORE_SERVING_HOST": "b"}
    assert load_settings(root, {}).serving.port == 1
    assert load_settings(root, environ).serving.port == 2
    serving = load_settings(root, environ | {"FEATURESTORE_SERVING_PORT_FILE": "port.txt"}).serving
    assert (serving.port, serving.host, serving.max_keys, serving.drain_s) == (3, "b", 5, 10.0)


def test_a_key_of_the_file_may_name_a_file_too(tmp_path: Path) -> None:
    (tmp_path / "host.txt").write_text("example\n")
    root = write(tmp_path, 'project = "shop"\n[serving]\nhost_file = "host.txt"\n')
    assert load_settings(root, {}).serving.host == "example"


def test_the_project_may_come_from_the_environment_alone(tmp_path: Path) -> None:
    root = write(tmp_path, "")
    assert load_settings(root, {"FEATURESTORE_PROJECT": "other"}).project == "other"
    assert "project is missing" in fault(root)


def test_absolute_paths_stay_and_relative_ones_begin_at_the_repository(tmp_path: Path) -> None:
    root = write(tmp_path, 'project = "shop"\n[online]\npath = "/var/online.db"\n[registry]\npath = "r.db"\n')
    settings = load_settings(root, {})
    assert settings.online.path == Path("/var/online.db")
    assert settings.registry.path == tmp_path / "r.db"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("colour = 1\n", "unknown setting 'colour'"),
        ("[offlin]\npath = 'x'\n", "unknown setting 'offlin'; did you mean 'offline'?"),
        (
            "[offline]\nmemory_limt = '1GB'\n",
            "unknown setting 'memory_limt' in [offline]; did you mean 'memory",
        ),
        ("[offline]\nkind = 'spark'\n", "offline.kind = 'spark': Input should be 'duckdb'"),
        ("[offline]\nmemory_limit = 'much'\n", "set it in featurestore.toml or FEATURESTORE_OFFLINE_MEMORY_LIMIT"),
        ("[offline]\nthreads = 0\n", "offline.threads = 0: Input should be greater than or equal to 1"),
        ("[serving]\nport = 70000\n", "serving.port = 70000"),
        ("[serving]\nport = 'x'\n", "serving.port = 'x': Input should be a valid integer"),
        ("offline = 3\n", "offline = 3: Input should be"),
        ("[serving]\nhost = 'a'\nhost_file = 'b'\n", "[serving] has both host and host_file; keep one"),
        ("[serving]\nhost_file = 'nowhere'\n", "[serving] host_file: nowhere cannot be read"),
        ("[serving\n", "is not valid TOML"),
    ],
)
def test_what_cannot_be_a_setting_is_refused(tmp_path: Path, text: str, said: str) -> None:
    assert said in fault(write(tmp_path, f'project = "shop"\n{text}'))


@pytest.mark.parametrize("project", ["2shop", "my-shop", "", "x" * 64, "a b"])
def test_a_project_is_a_name(tmp_path: Path, project: str) -> None:
    assert "letters, digits and _ only, a letter first" in fault(write(tmp_path, f'project = "{project}"\n'))


def test_an_unknown_variable_is_refused_with_the_nearest_one(tmp_path: Path) -> None:
    said = fault(write(tmp_path), FEATURESTORE_ONLINE_PAHT="x")
    assert "unknown setting FEATURESTORE_ONLINE_PAHT; did you mean 'FEATURESTORE_ONLINE_PATH'?" in said


def test_variables_that_are_no_settings_are_let_through(tmp_path: Path) -> None:
    environ = {"FEATURESTORE_NOW": "x", "FEATURESTORE_FAILPOINT": "y", "FEATURESTORE_DEBUG": "1", "OTHER": "z"}
    assert load_settings(write(tmp_path), environ).project == "shop"


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    said = fault(write(tmp_path, "colour = 1\n[serving]\nprot = 1\n"), FEATURESTORE_X="1")
    assert said.startswith("3 problems in the settings:")
    said = fault(write(tmp_path, 'project = "-"\n[serving]\nport = -1\n'))
    assert said.startswith("2 problems in the settings:")


def test_a_folder_without_settings_is_told_how_to_get_them(tmp_path: Path) -> None:
    assert "`featurestore init DIR`" in fault(tmp_path)


def test_secrets_are_masked(tmp_path: Path) -> None:
    class Login(BaseModel):
        user: str
        password: SecretStr

    assert shown(Login(user="ana", password=SecretStr("hunter2"))) == {"user": "ana", "password": "**********"}


def test_settings_cannot_be_changed_afterwards(tmp_path: Path) -> None:
    settings = load_settings(write(tmp_path), {})
    with pytest.raises(ValueError, match="frozen"):
        settings.project = "other"


REDIS = 'project = "shop"\n[online]\nkind = "redis"\nurl = "redis://cache:6379/0"\n'


def test_a_redis_online_store_takes_its_password_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("hunter2\n")
    root = write(tmp_path, REDIS + 'username = "store"\npassword_file = "password"\ntls_ca = "ca.pem"\n')

    online = load_settings(root, {}).online

    assert (online.kind, online.url, online.username) == ("redis", "redis://cache:6379/0", "store")
    assert online.password is not None
    assert online.password.get_secret_value() == "hunter2"
    assert online.tls_ca == tmp_path / "ca.pem"
    assert "hunter2" not in str(shown(load_settings(root, {})))
    other = load_settings(root, {"FEATURESTORE_ONLINE_PASSWORD": "hunter3"}).online.password
    assert other is not None
    assert other.get_secret_value() == "hunter3"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            'project = "shop"\n[online]\nurl = "redis://a"\n',
            '[online] url belong to kind = "redis", this one is "sqlite"; remove them',
        ),
        (
            'project = "shop"\n[online]\nretries = 1\ntls_ca = "x"\n',
            '[online] retries, tls_ca belong to kind = "redis"',
        ),
        (REDIS + 'path = "x"\n', '[online] path belong to kind = "sqlite", this one is "redis"'),
        (
            'project = "shop"\n[online]\nkind = "redis"\n',
            '[online] kind = "redis" needs url, as in url = "redis://host:6379/0"',
        ),
        (REDIS + "timeout_s = 0\n", "online.timeout_s = 0: Input should be greater than 0"),
        (REDIS + "retries = 100\n", "online.retries = 100"),
    ],
)
def test_settings_of_the_other_online_store_are_refused(tmp_path: Path, text: str, said: str) -> None:
    assert said in fault(write(tmp_path, text))


@pytest.mark.parametrize("text", [REDIS.replace("cache", "me:hunter2@cache"), REDIS + "password = 31337\n"])
def test_no_message_about_settings_holds_a_password(tmp_path: Path, text: str) -> None:
    said = fault(write(tmp_path, text))
    assert "online.password" in said
    assert "hunter2" not in said
    assert "31337" not in said


# ------------------------------------------------------------------ Postgres

SHARED = 'project = "shop"\n[offline]\nkind = "postgres"\nurl = "postgresql://me@db.example:5432/features"\n'


@pytest.mark.parametrize("section", ["offline", "registry"])
def test_postgres_takes_its_password_from_the_environment_or_a_file_and_never_shows_it(
    tmp_path: Path, section: str
) -> None:
    (tmp_path / "secret").write_text("s3cret\n")
    shared = SHARED.replace("offline", section)
    variable = f"FEATURESTORE_{section.upper()}_PASSWORD"
    by_file = write(tmp_path / "a", shared + f'password_file = "{tmp_path / "secret"}"\n')

    made = [
        load_settings(write(tmp_path / "b", shared), {variable: "s3cret"}),
        load_settings(write(tmp_path / "b", shared), {f"{variable}_FILE": str(tmp_path / "secret")}),
        load_settings(by_file, {}),
    ]

    for settings in made:
        password = getattr(settings, section).password
        assert password is not None
        assert password.get_secret_value() == "s3cret"
        assert "s3cret" not in f"{shown(settings)}{settings!r}"


@pytest.mark.parametrize(
    "secret", ["postgresql://me:s3cret@db/x", "postgresql://me@db/x?sslmode=require&password=s3cret"]
)
def test_a_password_in_an_address_is_not_shown(tmp_path: Path, secret: str) -> None:
    settings = load_settings(write(tmp_path, f'project = "shop"\n[offline]\nkind = "postgres"\nurl = "{secret}"\n'), {})

    assert settings.offline.url == secret
    assert "s3cret" not in str(shown(settings))


def test_only_the_settings_of_the_kind_are_shown(tmp_path: Path) -> None:
    assert set(shown(load_settings(write(tmp_path, SHARED), {}))["offline"]) == {"kind", "url", "password", "wait_s"}
    embedded = shown(load_settings(write(tmp_path), {}))["offline"]
    assert set(embedded) == {"kind", "path", "threads", "memory_limit", "wait_s"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[offline]\nkind = 'postgres'\n", 'kind = "postgres" needs url, as in url = "postgresql://user@host'),
        ("[offline]\nurl = 'postgresql://x/y'\n", 'url belong to kind = "postgres", this one is "duckdb"; remove'),
        ("[offline]\npassword = 's3cret'\n", 'password belong to kind = "postgres"'),
        (
            "[offline]\nkind = 'postgres'\nurl = 'postgresql://x/y'\npassword = 's3cret'\npath = 'x'\nthreads = 2\n",
            'path, threads belong to kind = "duckdb", this one is "postgres"; remove them',
        ),
        ("[registry]\nkind = 'postgres'\n", 'kind = "postgres" needs url, as in url = "postgresql://user@host'),
        ("[registry]\nurl = 'postgresql://me:s3cret@x/y'\n", 'url belong to kind = "postgres", this one is "sqlite"'),
    ],
)
def test_settings_of_another_kind_are_refused_and_secrets_not_repeated(tmp_path: Path, text: str, said: str) -> None:
    says = fault(write(tmp_path, f'project = "shop"\n{text}'))

    assert said in says
    assert "s3cret" not in says


@pytest.mark.parametrize("project", ["pg_mine", "public", "Information_Schema"])
def test_a_project_named_like_a_schema_of_postgres_is_refused(tmp_path: Path, project: str) -> None:
    says = fault(write(tmp_path, SHARED.replace("shop", project)))

    assert "has the name of a schema of Postgres; name it otherwise" in says


def test_what_the_serving_process_tells_is_off_until_named(tmp_path: Path) -> None:
    settings = load_settings(write(tmp_path), {})
    assert (settings.metrics.port, settings.rest.port, settings.tracing.endpoint) == (None, None, None)
    assert (settings.logging.format, settings.logging.level) == ("text", "info")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[tracing]\nendpoint = "collector:4317"\n', "tracing.endpoint"),
        ('[tracing]\nendpoint = "http://user:secret@collector:4317"\n', "tracing.endpoint"),
        ("[tracing]\nratio = 1.5\n", "tracing.ratio = 1.5"),
        ('[logging]\nformat = "xml"\n', "logging.format = 'xml'"),
        ("[logging]\nslow_request_s = 0\n", "logging.slow_request_s = 0"),
        ("[metrics]\nport = 70000\n", "metrics.port = 70000"),
    ],
)
def test_bad_settings_of_what_is_told_are_refused(tmp_path: Path, text: str, said: str) -> None:
    assert said in fault(write(tmp_path, f'project = "shop"\n{text}'))


def test_the_token_of_the_collector_is_a_secret(tmp_path: Path) -> None:
    environ = {"FEATURESTORE_TRACING_AUTHORIZATION": "Bearer hunter2"}
    settings = load_settings(write(tmp_path), environ)
    assert "hunter2" not in str(shown(settings)) + repr(settings)

"""The README keeps its word: every command and every program it shows is taken from it and run."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurestore import SystemClock
from tests.fix_redis import RedisFarm

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CUT = "2013-12-01T05:00:00Z"
#: What `make` targets stand for here: `make test` is what runs this test, and making .venv is the work of `make setup`.
STANDS_FOR = {"make demo": "featurestore demo", "make test": "", ". .venv/bin/activate": ""}


def blocks(language: str) -> list[str]:
    """The fenced blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def block_with(language: str, text: str) -> str:
    """The one block that holds `text`."""
    (found,) = [block for block in blocks(language) if text in block]
    return found


def shell(script: str, folder: Path) -> str:
    """Run commands as a user would, stopping at the first that fails; returns what they printed."""
    lines = [STANDS_FOR.get(line, line) for line in script.splitlines()]
    done = subprocess.run(
        ["bash", "-e", "-c", "\n".join(lines)],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def environment() -> dict[str, str]:
    """The environment of an activated .venv, without settings of the caller."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FEATURESTORE_")}
    return kept | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the README's first command was run."""
    folder = tmp_path_factory.mktemp("readme")
    printed = shell(block_with("sh", "make demo"), folder)
    assert "bit-equal to a training set as of now" in printed
    assert "7 break the contract; visibility widened to 15 miles, 6 replayed into history, 1 stays" in printed
    assert "0 differ" in printed
    assert_the_leak_is_worth_less(printed)
    assert re.search(r"predict +next 100 departures.* bit-equal to the batch", printed)
    return folder


def assert_the_leak_is_worth_less(printed: str) -> None:
    """It looks better offline than ours, and does worse when served."""
    found = re.search(r"leak (0\.\d+) offline, (0\.\d+) served .* ours (0\.\d+) and (0\.\d+)", printed)
    assert found is not None, printed
    leak_offline, leak_served, offline, served = map(float, found.groups())
    assert leak_offline > offline + 0.02
    assert 0.5 < leak_served < served - 0.01


def test_make_demo_runs_the_demo_and_make_test_the_tests() -> None:
    """What this file puts in place of `make` is what the Makefile does."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(r"^demo:.*\n\t@\$\(BIN\)/featurestore demo", makefile, flags=re.MULTILINE)
    assert re.search(r"^test:.*\n\t@\$\(BIN\)/python -m pytest", makefile, flags=re.MULTILINE)


def test_the_commands_that_explore_the_demo_run(demo: Path) -> None:
    """The block under "Explore it", from listing views to a clean verify."""
    printed = shell(block_with("sh", "cd flights-demo"), demo)
    assert "built again, equal to the last bit" in printed
    assert "no difference" in printed


def test_the_client_program_gets_its_answer(demo: Path) -> None:
    """The Python block that asks a server."""
    program = block_with("python", "client.get_online_features")
    with serving(demo / "flights-demo") as address:
        printed = run_python(program.replace("127.0.0.1:6566", address), demo)
    assert re.search(r"\[.*39\.9.*\]", printed)


def test_the_commands_that_sign_and_predict_run(demo: Path) -> None:
    """The block of "From features to predictions": the signature is the one that the demo wrote."""
    repository = demo / "flights-demo"
    signature = repository / "models" / "late_arrival" / "1" / "signature.json"
    written = signature.read_bytes()
    printed = shell(block_with("sh", "sign-model"), repository)
    assert signature.read_bytes() == written
    assert "wrote 100 rows with late_probability of late_arrival, version 1" in printed
    assert "late_probability" in (repository / "predictions.csv").read_text().partition("\n")[0]


def test_the_page_of_models_shows_no_other_commands() -> None:
    """So that what is run here is what stands there."""
    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    shown = re.findall(r"^featurestore .*$", page, flags=re.MULTILINE)
    assert shown == block_with("sh", "sign-model").splitlines()


def test_the_client_program_gets_a_prediction(demo: Path) -> None:
    """The Python block of "From features to predictions", with a sidecar beside the server."""
    program = block_with("python", "client.predict")
    repository = demo / "flights-demo"
    with (
        running(repository, "sidecar", "--models", "models", "--address", "127.0.0.1:0") as sidecar,
        serving(repository, FEATURESTORE_INFERENCE_ADDRESS=sidecar) as address,
    ):
        printed = run_python(program.replace("127.0.0.1:6566", address), demo)
    assert re.fullmatch(r"\[\[0\.[0-9]+\]\] \[[0-9]\]\n", printed)


def test_a_new_repository_runs_from_init_to_verify(tmp_path: Path) -> None:
    """The block under "Your own repository"."""
    assert "no difference" in shell(block_with("sh", "featurestore init shop"), tmp_path)


def test_the_definitions_and_the_program_over_them_run(tmp_path: Path) -> None:
    """The two Python blocks of "Your own repository": definitions, and the facade."""
    shop = tmp_path / "shop"
    (shop / "definitions").mkdir(parents=True)
    (shop / "data").mkdir()
    (shop / "featurestore.toml").write_text('project = "shop"\n')
    (shop / "definitions" / "drivers.py").write_text(block_with("python", "driver_stats = FeatureView("))
    hour = SystemClock().now().replace(minute=0, second=0, microsecond=0) - timedelta(hours=2)
    times = pa.array([hour, hour], pa.timestamp("us", "UTC"))
    stats = {"driver_id": [1001, 1002], "trips": [3, 4], "acceptance": [0.5, None]}
    pq.write_table(pa.table({**stats, "event_time": times, "created": times}), shop / "data" / "driver_stats.parquet")
    spine = (
        "from featurestore import SystemClock\n"
        "import pyarrow as pa\n"
        'now = pa.scalar(SystemClock().now(), pa.timestamp("us", "UTC"))\n'
        'spine = pa.table({"driver_id": [1002, 1001, 1], "as_of": pa.repeat(now, 3)})\n'
    )
    shown = "\nprint(x.tolist())\nprint(online.tolist())\n"

    printed = run_python(spine + block_with("python", 'FeatureStore("shop")') + shown, tmp_path).splitlines()

    assert printed[0] == "[[4.0, 0.0], [3.0, 0.5], [nan, 0.0]]"
    assert printed[1] == "[[3.0, 0.5], [4.0, 0.0]]"


def test_every_page_the_readme_links_to_exists() -> None:
    """Relative links lead somewhere."""
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def run_python(program: str, folder: Path) -> str:
    """Run a program with the interpreter of the tests; returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, f"{program}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def serving(repository: Path, now: str = CUT, **settings: str) -> AbstractContextManager[str]:
    """`featurestore serve` on a free port; yields its address."""
    return running(repository, "--now", now, "serve", "--port", "0", **settings)


@contextmanager
def running(repository: Path, *command: str, **settings: str) -> Iterator[str]:
    """A command that serves; yields its address."""
    with subprocess.Popen(
        [sys.executable, "-m", "featurestore.cli.main", *command],
        cwd=repository,
        env=environment() | settings,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().removeprefix("serving on ").strip()
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0


def test_the_move_to_servers_is_the_settings_shown_and_no_more(
    tmp_path: Path, postgres: str, redis_farm: RedisFarm
) -> None:
    """The block of settings with the addresses of this machine: the same training set, and a clean verify."""
    shell(block_with("sh", "featurestore init shop"), tmp_path)
    shop = tmp_path / "shop"
    train = "featurestore get-historical-features --service comfort --spine spine.csv --out {}.parquet"
    shell(train.format("embedded"), shop)

    settings = block_with("toml", 'kind = "postgres"')
    for shown, here in (
        ("postgresql://featurestore@127.0.0.1:5432/featurestore", postgres),
        ("redis://127.0.0.1:6379/0", redis_farm.address("valkey").url),
        ('project = "shop"', f'project = "shop_{tmp_path.name[-12:]}"'.replace("-", "_")),
    ):
        assert shown in settings
        settings = settings.replace(shown, here)
    (shop / "featurestore.toml").write_text(settings, encoding="utf-8")
    shell("featurestore apply\nfeaturestore materialize-incremental", shop)
    assert "no difference" in shell("featurestore verify", shop)
    shell(train.format("servers"), shop)

    trained = pq.read_table(shop / "servers.parquet")
    assert trained.equals(pq.read_table(shop / "embedded.parquet"))
    assert trained.column("temperature").null_count < trained.num_rows


def test_the_demo_gives_the_same_training_set_on_servers(
    demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, postgres: str, redis_farm: RedisFarm
) -> None:
    """As in the README: the same settings, as variables."""
    servers = {
        "FEATURESTORE_REGISTRY_KIND": "postgres",
        "FEATURESTORE_REGISTRY_URL": postgres,
        "FEATURESTORE_OFFLINE_KIND": "postgres",
        "FEATURESTORE_OFFLINE_URL": postgres,
        "FEATURESTORE_ONLINE_KIND": "redis",
        "FEATURESTORE_ONLINE_URL": redis_farm.address("valkey").url,
    }
    exported = "\n".join(f"export {name}='{value}'" for name, value in servers.items())

    printed = shell(f"{exported}\nfeaturestore demo", tmp_path)

    assert "bit-equal to a training set as of now" in printed
    assert "0 differ" in printed
    (there,) = (tmp_path / "flights-demo" / "training").glob("*.parquet.manifest.json")
    (here,) = (demo / "flights-demo" / "training").glob("*.parquet.manifest.json")
    digests = [json.loads(manifest.read_text(encoding="utf-8"))["digest"] for manifest in (there, here)]
    assert digests[0] == digests[1]

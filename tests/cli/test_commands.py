"""The commands' front door: help without weight, and what comes out on success."""

import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest

from cli.main import COMMANDS, LazyCommands
from cli.main import slugline as group
from cli.request import parse_options
from contracts.errors import InputError
from contracts.values import Method
from data.layout import concept_id
from intake.workspace import Workspace
from tasks.house import choose, rules
from tests.cli.conftest import Slugline
from tests.world import FORGET, FORGET_TWO, MODEL, SEEN, TARGET, Done, World

REPOSITORY = Path(__file__).parents[2]
HEAVY = ("torch", "prefect", "mlflow", "dvc", "great_expectations", "pandas", "numpy", "sqlalchemy")


def test_help_imports_no_heavy_package() -> None:
    """Whatever the machine: `slugline --help` answers at once only if nothing slow is imported."""
    script = (
        "import sys; sys.argv = ['slugline', '--help']\n"
        "from cli.main import main\n"
        "try: main()\n"
        f"finally: print('heavy:', [m for m in {HEAVY!r} if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )

    assert "heavy: []" in done.stdout
    for name, (_, _, line) in COMMANDS.items():
        assert f"  {name} " in done.stdout
        assert line[:40] in done.stdout


def every_command(command: click.Command, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = [path]
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            sub = command.get_command(context, name)
            assert sub is not None
            found += every_command(sub, (*path, name))
    return found


def test_every_command_explains_itself(slugline: Slugline) -> None:
    assert isinstance(group, LazyCommands)
    commands = every_command(group)
    assert {("request", "add"), ("models", "import"), ("sets", "check"), ("run",)} <= set(commands)

    for path in commands:
        said = slugline(*path, "--help")
        assert (said.code, said.errors) == (0, []), path
        assert said.out.startswith(f"Usage: slugline {' '.join(path)}".rstrip()), path


def test_the_list_of_commands_says_what_the_commands_say(slugline: Slugline) -> None:
    """The front page is written by hand, so that showing it imports no command."""
    for name, (_, _, line) in COMMANDS.items():
        first = slugline(name, "--help").out
        assert line.split()[0].lower() in first.lower(), name


def test_an_unknown_command_exits_2(slugline: Slugline) -> None:
    said = slugline("forget-everything")

    assert said.code == 2
    assert "No such command 'forget-everything'" in said.errors[-1]


class TestRequests:
    def test_are_added_listed_shown_and_cancelled(self, workspace: Workspace, slugline: Slugline) -> None:
        given = ("--model", MODEL, "--forget-set", FORGET, "--concept", TARGET, "--key", "k")

        added = json.loads(slugline("request", "add", *given, "--option", "seed=3", "--json").out)

        assert (added["state"], added["targets"]) == ("received", [concept_id(TARGET)])
        assert added["options"] == {"seed": 3}
        assert slugline("request", "add", *given, "--option", "seed=3").out.strip() == added["id"]
        assert [r["id"] for r in json.loads(slugline("request", "list", "--json").out)] == [added["id"]]
        assert added["id"] in slugline("request", "list", "--model", MODEL, "--state", "received").out
        assert slugline("request", "list", "--state", "passed").out == ""
        assert json.loads(slugline("request", "show", added["id"]).out) == added

        assert slugline("request", "cancel", added["id"]).out == f"{added['id']} cancelled\n"
        assert json.loads(slugline("request", "show", added["id"]).out)["state"] == "cancelled"
        assert list(workspace.runs.iterdir()) == []

    @pytest.mark.parametrize(
        ("tower", "towers"), [("text", ["text"]), ("vision", ["vision"]), ("both", ["vision", "text"])]
    )
    def test_say_which_tower_and_method(
        self, workspace: Workspace, slugline: Slugline, tower: str, towers: list[str]
    ) -> None:
        given = ("--model", MODEL, "--forget-set", FORGET, "--tower", tower, "--method", "slug")

        added = json.loads(slugline("request", "add", *given, "--option", "method.forget_at=2", "--json").out)

        assert added["options"] == {"method": {"forget_at": 2, "towers": towers, "name": "slug"}}

    @pytest.mark.parametrize(("model", "micro_batch"), [("emoji-clip", 256), ("real-clip", 64)])
    def test_ask_for_the_papers_method_as_the_readme_says(
        self, workspace: Workspace, slugline: Slugline, model: str, micro_batch: int
    ) -> None:
        readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
        (told,) = re.findall(r"`slugline request add (--method slug [^`]*)`", readme)
        house = rules(REPOSITORY, model, "object")

        def resulting(*options: str) -> Method:
            given = ("--model", MODEL, "--forget-set", FORGET, *options)
            added = json.loads(slugline("request", "add", *given, "--json").out)
            return choose(house, added["options"]).method

        paper = Method(step_rule="bisection", retain_batch=16, micro_batch=micro_batch)
        assert (paper.name, paper.towers, paper.forget_at, paper.search_steps) == (
            "slug",
            ("vision", "text"),
            5,
            10,
        )
        assert resulting(*told.split()) == paper
        assert resulting("--method", "slug") != paper, "the house's towers and stop rule stay"

    def test_with_an_unknown_method_are_refused(self, workspace: Workspace, slugline: Slugline) -> None:
        said = slugline("request", "add", "--model", MODEL, "--forget-set", FORGET, "--method", "magic")

        assert said.code == 2
        assert "magic" in said.errors[-1]

    def test_mean_all_that_the_set_is_labelled_with_by_default(
        self, workspace: Workspace, slugline: Slugline
    ) -> None:
        said = slugline("request", "add", "--model", MODEL, "--forget-set", FORGET_TWO, "--json")

        assert json.loads(said.out)["targets"] == sorted((concept_id(SEEN[3]), concept_id(SEEN[6])))

    def test_leave_the_scratch_of_a_running_intake_alone(
        self, workspace: Workspace, slugline: Slugline, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A run that starts meanwhile sweeps up after dead ones: the folder must have an owner."""
        from data.pins import PinnedRepo

        swept = []
        pin = PinnedRepo.pin_set

        def while_another_run_starts(self: PinnedRepo, path: str) -> Any:
            swept.append(workspace.sweep_stale_runs())
            return pin(self, path)

        monkeypatch.setattr(PinnedRepo, "pin_set", while_another_run_starts)

        assert slugline("request", "add", "--model", MODEL, "--forget-set", FORGET).code == 0
        assert swept == [0]


def test_options_are_nested_by_dots_and_read_as_json() -> None:
    assert parse_options(("method.search_steps=12", "gates=gates/mine.yaml", "seed=1", "method.x=[1]")) == {
        "method": {"search_steps": 12, "x": [1]},
        "gates": "gates/mine.yaml",
        "seed": 1,
    }
    for given in (("seed",), ("=1",), ("a=1", "a.b=2")):
        with pytest.raises(InputError, match="option '"):
            parse_options(given)


class TestModels:
    def test_are_imported_from_a_folder_once(
        self, in_world: World, slugline: Slugline, tmp_path: Path
    ) -> None:
        given = ("models", "import", "--name", MODEL, "--folder", str(in_world.model), "--json")
        receipt = tmp_path / "receipt.json"

        first = json.loads(slugline(*given, "--receipt", str(receipt)).out)
        second = json.loads(slugline(*given).out)

        assert (first["version"], first["family"]) == ("1", "clip")
        assert second == first
        assert json.loads(receipt.read_text()) == {k: v for k, v in first.items() if k != "version"}
        assert json.loads(slugline("models", "list", "--json").out) == {MODEL: {"champion": "1"}}

    def test_are_imported_from_a_published_checkpoint(
        self,
        in_world: World,
        slugline: Slugline,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """A real .pt file and open_clip's own importer; only the list of architectures is ours."""
        import open_clip
        import torch

        tiny = {
            "embed_dim": 8,
            "vision_cfg": {"layers": 1, "width": 16, "head_width": 8, "patch_size": 8, "image_size": 16},
            "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1},
        }
        monkeypatch.setattr(open_clip, "get_model_config", {"ViT-tiny": tiny}.get)
        checkpoint = tmp_path / "tiny.pt"
        torch.save({"state_dict": open_clip.model.CLIP(**tiny).state_dict()}, checkpoint)
        given = ("models", "import", "--name", "tiny", "--architecture")

        imported = slugline(*given, "ViT-tiny", "--checkpoint", str(checkpoint), "--json")

        assert json.loads(imported.out)["version"] == "1"
        assert slugline("models", "list", "tiny").out.split() == ["1", "imported", "champion"]
        assert slugline(*given, "ViT-huge", "--checkpoint", str(checkpoint)).errors == [
            "slugline: open_clip knows no architecture 'ViT-huge'"
        ]

    @pytest.mark.parametrize(
        "sources",
        [(), ("--folder", ".", "--architecture", "RN50"), ("--folder", ".", "--pretrained", "openai")],
    )
    def test_come_from_one_source(
        self, in_world: World, slugline: Slugline, sources: tuple[str, ...]
    ) -> None:
        said = slugline("models", "import", "--name", "x", *sources)

        assert (said.code, len(said.errors)) == (2, 1)
        assert "give either --folder, or --architecture" in said.errors[0]

    def test_are_listed_and_moved_by_hand(
        self, done_workspace: Workspace, slugline: Slugline, done: Done, prefect_server: None
    ) -> None:
        listed = slugline("models", "list", MODEL).out.splitlines()
        assert [line.split() for line in listed] == [
            ["1", "imported", "previous"],
            ["2", "passed,", "request", done.request_id, "champion"],
        ]

        refused = slugline("models", "rollback", MODEL, "--expect-champion", "2")
        assert (refused.code, len(refused.errors)) == (2, 1)
        assert f"would bring back what {done.request_id} erased" in refused.errors[0]

        moved = slugline("models", "rollback", MODEL, "--expect-champion", "2", "--allow-reinstating")
        assert moved.out == f"{MODEL}: champion is version 1 (moved)\n"
        back = slugline("models", "promote", MODEL, "2", "--expect-champion", "1", "--json")
        assert json.loads(back.out)["to_version"] == "2"


class TestSets:
    def test_are_built_and_checked(self, in_world: World, slugline: Slugline, tmp_path: Path) -> None:
        from dvc.repo import Repo

        Repo.init(str(tmp_path), no_scm=True).close()
        pictures = tmp_path / "pictures"
        pictures.mkdir()
        for number, content in enumerate(in_world.pictures(FORGET)):
            (pictures / f"{number}.png").write_bytes(content)
        out = str(tmp_path / "set")
        given = ("--role", "forget", "--concept", TARGET, "--caption", "a tile", "--views", "2", "--public")

        added = slugline("sets", "add", str(pictures), out, *given, "--json")

        assert json.loads(added.out) == {
            "role": "forget",
            "personal": False,
            "n_items": 8,
            "n_drawings": 4,
            "licence": "unstated",
        }
        assert Path(f"{out}.dvc").is_file()
        assert stat.S_IMODE(Path(os.environ["SLUGLINE_HOME"]).stat().st_mode) == 0o700
        checked = json.loads(slugline("sets", "check", out, str(in_world.root / "sets/retain"), "--json").out)
        assert [s["role"] for s in checked["sets"]] == ["forget", "retain"]
        assert "forget   8 items, 4 drawings" in slugline("sets", "check", out).out
        for others, said in (
            ((out, str(in_world.root / FORGET)), "give at most one set of each role"),
            (
                (str(in_world.root / "sets/forget-overlap"), str(in_world.root / "sets/retain")),
                "share 2 images",
            ),
        ):
            refused = slugline("sets", "check", *others)
            assert (refused.code, len(refused.errors)) == (2, 1)
            assert said in refused.errors[0]


class TestVerify:
    @pytest.fixture
    def model_folder(self, done_workspace: Workspace, tmp_path: Path) -> Path:
        from tasks.stores import open_registry

        return Path(open_registry(done_workspace).pull(MODEL, "2", tmp_path / "pulled").folder)

    def test_needs_nothing_but_certificate_and_model(
        self, done: Done, model_folder: Path, tmp_path: Path
    ) -> None:
        """From an empty folder, by somebody who has no workspace: and none is made."""
        empty = tmp_path / "empty"
        empty.mkdir()
        script = (
            "import sys; sys.argv[0] = 'slugline'\nfrom cli.main import main\n"
            f"try: main()\nfinally: assert not [m for m in {HEAVY!r} if m in sys.modules]"
        )

        said = subprocess.run(
            [
                sys.executable,
                "-c",
                script,
                "verify",
                done.result["certificate"],
                "--model",
                str(model_folder),
            ],
            cwd=empty,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(REPOSITORY)},
            capture_output=True,
            text=True,
            check=False,
        )

        assert (said.returncode, said.stderr) == (0, "")
        assert said.stdout.splitlines()[-1] == "sound; verdict: passed"
        assert list(empty.iterdir()) == []

    def test_exits_2_for_other_weights_or_another_digest(
        self, done: Done, model_folder: Path, slugline: Slugline, world: World
    ) -> None:
        certificate = done.result["certificate"]
        other = str(world.model / "weights.safetensors")

        assert slugline("verify", certificate).code == 2  # held against nothing
        assert slugline("verify", certificate, "--weights", other).code == 2
        given = ("--model", str(model_folder), "--json")
        wrong = slugline("verify", certificate, *given, "--expected-sha256", "0" * 64)
        assert (wrong.code, json.loads(wrong.out)["ok"]) == (2, False)
        assert json.loads(slugline("verify", certificate, *given).out)["ok"] is True


class TestDoctor:
    def test_reports_every_finding_as_json(self, workspace: Workspace, slugline: Slugline) -> None:
        told = json.loads(slugline("doctor", "--json").out)

        findings = {f["what"]: f for f in told["findings"]}
        assert findings["ledger"] == {"what": "ledger", "ok": True, "detail": "0 requests"}
        assert findings["registry"]["detail"] == MODEL
        assert findings["DO_NOT_TRACK"]["ok"]
        assert findings["repository"]["ok"]
        assert told["ok"] == all(f["ok"] for f in told["findings"])

    def test_exits_2_when_a_store_does_not_answer(
        self, workspace: Workspace, slugline: Slugline, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")

        said = slugline("doctor", "--json")

        findings = {f["what"]: f for f in json.loads(said.out)["findings"]}
        assert said.code == 2
        assert not findings["registry"]["ok"]
        assert "does not answer" in findings["registry"]["detail"]

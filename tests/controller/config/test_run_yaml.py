"""run.yaml and the command's answers to bad input: one line, exit code 2, nothing started."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from mixloop.cli.app import main
from mixloop.common.errors import BadInput
from mixloop.controller.config import TEMPLATE, load_config
from mixloop.controller.service import check_evals
from mixloop.trainer.config import JobError, load_run

GOOD: dict[str, Any] = {
    "run": {"id": "r", "dir": "runs/r", "seed": 3},
    "budget": "2M",
    "sources": {
        "web": {"path": "web", "tags": ["web"], "weight": 0.75},
        "code": {"path": "code", "weight": 0.25},
        "maths": {"path": "maths", "standby": True},
    },
}


def write_store(folder: Path, tokens: int = 10_000) -> None:
    """A token store as ``mixloop prepare`` would leave it (header and data)."""
    folder.mkdir(parents=True)
    np.arange(tokens, dtype="<u2").tofile(folder / "tokens.bin")
    header = {"schema": "mixloop/store/1", "tokens": tokens, "documents": 1, "dtype": "uint16"}
    header |= {"vocab_size": 65536, "tokenizer": "t", "fingerprint": "f", "eos_id": 0}
    (folder / "store.json").write_text(json.dumps(header))


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    for name in ("web", "code", "maths"):
        write_store(tmp_path / name)
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(GOOD))
    return path


def mixloop(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mixloop.cli.app", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def change(base: dict[str, Any], where: str, value: Any) -> dict[str, Any]:
    """A deep copy with one key (dotted) set."""
    made = json.loads(json.dumps(base))
    here = made
    *path, last = where.split(".")
    for part in path:
        here = here.setdefault(part, {})
    here[last] = value
    return made


def test_a_good_file_loads_with_absolute_paths(run_file: Path) -> None:
    config = load_config(run_file)
    assert config.budget == 2_000_000
    assert config.run.dir == run_file.parent / "runs/r"
    assert config.sources["web"].path == run_file.parent / "web"
    assert config.tracking.uri == f"sqlite:///{run_file.parent / 'runs/r/mlflow.db'}"


def test_a_relative_tracking_file_is_relative_to_the_run_file(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(change(GOOD, "tracking.uri", "sqlite:///all.db")))
    assert load_config(path).tracking.uri == f"sqlite:///{tmp_path / 'all.db'}"


def test_every_path_is_relative_to_the_run_file(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    data = change(GOOD, "trainer.init_from", "models/base")
    path.write_text(yaml.safe_dump(change(data, "trainer.tokenizer", "tokenizer")))
    trainer = load_config(path).trainer
    assert trainer.init_from == tmp_path / "models/base"
    assert trainer.tokenizer == tmp_path / "tokenizer"


def test_weights_for_some_sources_only_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    data = change(GOOD, "sources.code", {"path": "code"})
    path.write_text(yaml.safe_dump(change(data, "sources.web.weight", 1.0)))
    with pytest.raises(BadInput, match=r"sources\.code: no weight though others have one"):
        load_config(path)


def test_benchmark_files_are_relative_to_the_run_file(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    data = change(GOOD, "evals.benchmarks", {"gsm8k": {"data": ["mine.jsonl"]}, "mmlu": {}})
    path.write_text(yaml.safe_dump(data))
    benchmarks = load_config(path).evals.benchmarks
    assert benchmarks["gsm8k"].data == (tmp_path / "mine.jsonl",)
    assert benchmarks["mmlu"].data == "auto"


def test_the_template_is_a_legal_run(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(TEMPLATE)
    config = load_config(path)
    assert config.budget == 10**10
    assert config.policy.use == "rules"


@pytest.mark.parametrize(
    ("budget", "tokens"), [("2%", 40_000), (0.02, 40_000), ("200k", 200_000), (0, 0), (None, 0)]
)
def test_the_budget_of_experiments_is_a_share_or_a_count(
    tmp_path: Path, budget: Any, tokens: int
) -> None:
    path = tmp_path / "run.yaml"
    made = GOOD if budget is None else change(GOOD, "experiments.budget", budget)
    path.write_text(yaml.safe_dump(made))
    assert load_config(path).experiment_tokens == tokens


def test_a_twin_is_not_compared_with_a_mean_of_checkpoints(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    made = change(GOOD, "experiments", {"budget": "2%", "receipts": True})
    path.write_text(yaml.safe_dump(made))
    assert load_config(path).experiments.receipts
    path.write_text(yaml.safe_dump(change(made, "evals.average", 3)))
    with pytest.raises(
        BadInput, match=r"experiments\.receipts: .* a mean of 3; set evals\.average"
    ):
        load_config(path)


def test_commands_of_experiments_are_relative_to_the_run_file(tmp_path: Path) -> None:
    command = ["./branch.sh", "{checkpoint}", "{mixture}", "{tokens}", "--out={out}"]
    made = change(GOOD, "experiments.trainer", command)
    made["experiments"]["launcher"] = ["srun", "{command}"]
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(made))
    section = load_config(path).experiments
    assert section.trainer == (str(tmp_path / "branch.sh"), *command[1:])
    assert section.launcher == ("srun", "{command}")


@pytest.mark.parametrize("device", ["cpu", "cuda", "cuda:7", "mps", "privateuseone:0"])
def test_a_device_may_be_one_of_another_machine(tmp_path: Path, device: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(change(GOOD, "experiments.device", device)))
    assert load_config(path).experiments.device == device


def test_check_misses_the_program_of_another_trainer(run_file: Path) -> None:
    command = ["./branch.sh", "{checkpoint}", "{mixture}", "{tokens}", "{out}"]
    run_file.write_text(yaml.safe_dump(change(GOOD, "experiments.trainer", command)))
    with pytest.raises(BadInput, match=r"experiments\.trainer: there is no program '.*branch\.sh'"):
        check_evals(run_file, load_config(run_file))


BAD = [
    ("sources.web.weigth", 0.5, ["sources.web.weigth", "did you mean 'weight'"]),
    ("bugdet", "1T", ["bugdet", "did you mean 'budget'"]),
    ("guards.max_epoch", 4, ["guards.max_epoch", "did you mean 'max_epochs'"]),
    ("trainer.model.hiden_size", 4, ["trainer.model.hiden_size", "did you mean 'hidden_size'"]),
    ("budget", "11X", ["budget", "11X", "11T"]),
    ("budget", 0, ["budget", "0"]),
    ("experiments.receipts", True, ["experiments.receipts", "add budget: 2%"]),
    ("guards.dwell", "2 Q", ["guards.dwell", "2 Q"]),
    ("evals.every", "-5M", ["evals.every", "-5M"]),
    ("sources.web.weight", 0.5, ["0.75", "not 1", "+0.25"]),
    ("sources.web.weight", 1.5, ["sources.web.weight", "1.5"]),
    ("sources.maths.weight", 0.1, ["maths", "standby"]),
    ("sources", {}, ["sources"]),
    ("run.id", "../up", ["run.id", "../up"]),
    ("evals.benchmarks", {"gsm 8k": {}}, ["gsm 8k", "gsm8k"]),
    ("guards.max_change", 3, ["guards.max_change", "3"]),
    ("experiments.budget", "200%", ["experiments.budget", "2%", "200M"]),
    ("experiments.budget", "lots", ["experiments.budget", "2%"]),
    ("experiments.bugdet", "2%", ["experiments.bugdet", "did you mean 'budget'"]),
    ("experiments.launcher", "ray", ["experiments.launcher", "ray is not for experiments"]),
    ("experiments.launcher", ["srun"], ["experiments.launcher", "{command}"]),
    ("experiments.trainer", ["x", "{checkpoint}"], ["experiments.trainer", "{mixture}"]),
    (
        "experiments.trainer",
        ["x", "{checkpoint}", "{mixture}", "{tokens}", "{out}", "{learningrate}"],
        ["'{learningrate}'", "did you mean '{learning_rate}'?"],
    ),
    ("experiments.trainer", "./branch.sh", ["experiments.trainer: must be a list, as in [a, b]"]),
    (
        "experiments.device",
        "cudaa",
        ["experiments.device", "'cudaa' is no device: write cpu, cuda"],
    ),
    ("experiments.device", "cuda:x", ["experiments.device", "'cuda:x'", "or cuda:1"]),
    ("experiments.device", "cuda:", ["experiments.device", "'cuda:'"]),
    ("evals.device", "auto", ["evals.device", "'auto' is no device"]),
    ("run.seed", 2**63, ["run.seed", "9223372036854775808"]),
    ("run.seed", 2**80, ["run.seed", "1208925819614629174706176", "2^64"]),
    ("run.dir", "ru\0n", ["run.dir", "NUL"]),
    ("trainer.learning_rate", float("inf"), ["trainer.learning_rate", "finite"]),
    ("trainer.betas", [float("nan"), 0.9], ["trainer.betas.0", "finite"]),
    ("experiments", "2%", ["experiments: must be keys with values, as in {key: value}", "'2%'"]),
]


@pytest.mark.parametrize(("where", "value", "named"), BAD)
def test_bad_values_are_named_with_a_mend(
    tmp_path: Path, where: str, value: Any, named: list[str]
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(change(GOOD, where, value)))
    with pytest.raises(BadInput) as caught:
        load_config(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    for text in named:
        assert text in message


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("run: [a", ["line"]),
        ("budget: 1M\nbudget: 2M\n", ["budget", "twice", "line 2"]),
        ("- a\n- b\n", ["mapping"]),
        ("", ["mapping"]),
        ("run: !!python/object:os.system x\n", ["YAML"]),
    ],
)
def test_what_is_no_yaml_mapping_is_told(tmp_path: Path, text: str, named: list[str]) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(BadInput) as caught:
        load_config(path)
    for part in named:
        assert part in str(caught.value)


BAD_COMMANDS = [
    ({"sources.web.weigth": 1}, "weigth"),
    ({"sources.web.path": "nowhere"}, "nowhere"),
    ({"budget": "11X"}, "11X"),
    ({"sources.web.weight": 0.5}, "0.75"),
    (
        {"evals.benchmarks": {"gsm9k": {}}},
        "evals.benchmarks.gsm9k: no such benchmark; did you mean",
    ),
    ({"policy.use": "rulez"}, "rules"),
    ({"policy.use": "./absent.py:Mine"}, "absent.py"),
    ({"policy.use": "./broken.py:Mine"}, "broken.py"),
    ({"policy.use": "rules", "policy.with": {"interventionz": []}}, "interventions"),
]


def test_check_misses_files_of_items(run_file: Path) -> None:
    run_file.write_text(
        yaml.safe_dump(change(GOOD, "evals.benchmarks", {"mmlu": {"data": "gone.jsonl"}}))
    )
    done = mixloop("check", run_file)
    assert done.returncode == 2, done.stderr
    assert "evals.benchmarks.mmlu.data: " in done.stderr
    assert "gone.jsonl: no such file or folder" in done.stderr


@pytest.mark.parametrize(("changes", "named"), BAD_COMMANDS)
def test_commands_end_with_one_line_and_code_2(
    run_file: Path, changes: dict[str, Any], named: str
) -> None:
    data = GOOD
    for where, value in changes.items():
        data = change(data, where, value)
    run_file.write_text(yaml.safe_dump(data))
    (run_file.parent / "broken.py").write_text("import not_a_module\n\n\nclass Mine:\n    pass\n")
    done = mixloop("control", run_file)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert named in done.stderr
    assert not (run_file.parent / "runs").exists(), "something was started"


@pytest.mark.parametrize(
    "arguments",
    [
        ("status", "nowhere"),
        ("history", "nowhere"),
        ("explain", "nowhere", "d-000001"),
        ("check", "nowhere.yaml"),
        ("train", "nowhere.yaml"),
        ("run", "nowhere.yaml"),
        ("eval", "nowhere"),
        ("prepare", "nowhere.jsonl", "--out", "store", "--tokenizer", "nowhere"),
    ],
)
def test_paths_that_lead_nowhere(
    arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["mixloop", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr()
    assert ended.value.code == 2
    assert "nowhere" in said.err
    assert said.err.count("\n") == 1


def test_check_reports_what_the_first_mixture_leads_to(run_file: Path) -> None:
    done = mixloop("check", run_file, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["sources"]["web"]["projected_epochs"] == pytest.approx(
        0.75 * 2e6 / 9_984
    )  # of whole windows
    assert any("web" in note and "max_epochs" in note for note in report["notes"])


def test_init_does_not_replace_a_file(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    assert mixloop("init", path).returncode == 0
    before = path.read_text()
    path.write_text(before + "# mine\n")
    assert mixloop("init", path).returncode == 2
    assert path.read_text().endswith("# mine\n")


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    code = (
        "import sys, time\n"
        "from mixloop.cli.app import app\n"
        "try:\n    app(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'lm_eval', 'mlflow', 'transformers', 'numpy', 'scipy', 'pydantic'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "demo" in done.stdout
    assert done.stderr.strip() == "[]"


def test_a_file_of_megabytes_is_refused_before_yaml_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(GOOD) + " " * 9_000_000 + "\n")
    with pytest.raises(BadInput, match="larger than 8,388,608 bytes"):
        load_config(path)
    with pytest.raises(JobError, match="larger than 8,388,608 bytes"):
        load_run(path)


@pytest.mark.parametrize(
    ("trainer", "decay"),
    [
        ({}, None),
        ({"decay": "400k"}, 400_000),
        ({"warmup": "10k"}, 0),
        ({"phases": {"stable": 0, "decay": "1.5M"}}, 500_000),
        ({"phases": {"stable": 0}}, 0),
        ({"lr_schedule": "cosine", "warmup": "10k"}, None),
    ],
)
def test_the_decay_is_what_the_trainer_says(
    run_file: Path, trainer: dict[str, Any], decay: int | None
) -> None:
    run_file.write_text(yaml.safe_dump(change(GOOD, "trainer", trainer)))
    assert load_config(run_file).decay == decay

"""The campaign's parts: every command that it would run is one that mien takes."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from mien.training.run import parser

ROOT = Path(__file__).parents[1]
PARTS = ("teachers", "ideas", "student", "final", "means", "btn", "looks")

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")


def commands(*words: str) -> list[list[str]]:
    """What make would run, word by word, of mien's own."""
    make = ["make", "-n", "-s", "-o", ".venv/testing", "campaign", *words]
    done = subprocess.run(make, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.replace("\\\n", " ").splitlines()
    return [shlex.split(line)[1:] for line in lines if line.startswith(".venv/bin/mien ")]


def test_every_run_is_made_once_and_can_be_made(tmp_path):
    found = commands(f"RUNS={tmp_path}", "SEEDS=1", "STUDENTS=4 5")
    means = {Path(out).stem: [Path(each).parent.name for each in of] for verb, out, *of in found if verb == "average"}
    assert means["student_mean"] == ["student_4", "student_5"] and means["final_mean"] == ["final_4", "final_5"]
    assert set(means) == {"long_mean", "student_mean", "final_mean"}
    runs = [words[1:] for words in found if words[0] == "train"]
    names = [words[words.index("--name") + 1] for words in runs]
    ideas = [f"{name}_1" for name in ("plain", "flip", "branch", "adjust", "mix", "cut", "hard", "rand", "sam")]
    teachers = ["long_0", "long_1", "long_2", "wide_0"]
    assert sorted(names) == sorted([*ideas, *teachers, *means["student_mean"], *means["final_mean"]])
    read, seen, joined = parser(), set(), []
    for name, words in zip(names, runs, strict=True):
        if name in ("flip_1", "adjust_1", "mix_1", "cut_1", "rand_1", "sam_1", "long_1", "long_2"):
            # of one recipe: understood together, for time
            joined += words[1:]
            continue
        config = read.parse_args(["--config", str(ROOT / words[0]), *words[1:]])
        assert config.name == name and config.out == str(tmp_path / name) and config.keep_all
        assert config.trainer.accelerator == "gpu" and config.faces.in_memory
        seen.add((config.seed, name))
        assert ("train+validation" in config.faces.train_split) == name.startswith("final")
        assert len(config.teachers) == (5 if name.startswith(("student", "final")) else 0)
    assert len(seen) == len(runs) - 8
    read.parse_args(["--config", str(ROOT / runs[names.index("plain_1")][0]), *joined])


def test_mobilenet_in_two_phases_a_seed_and_their_mean(tmp_path):
    (tmp_path / "mobilenet_1_4").mkdir()
    (tmp_path / "mobilenet_1_4" / "finished.json").write_text("{}")
    found = commands(f"RUNS={tmp_path}", "SEEDS=4 5", "PART=mobilenet", "MOBILENET=trunk.safetensors")
    *trained, averaged = found
    last = {name: str(tmp_path / name / "last.safetensors") for name in ("mobilenet_1_4", "mobilenet_1_5")}
    begun, read = {}, parser()
    for _, recipe, *words in trained:
        config = read.parse_args(["--config", str(ROOT / recipe), *words])
        begun[config.name] = config.init
    assert begun == {
        "mobilenet_1_5": {"image": "trunk.safetensors"},
        "mobilenet_2_4": {"": last["mobilenet_1_4"]},
        "mobilenet_2_5": {"": last["mobilenet_1_5"]},
    }
    assert [Path(each).parent.name for each in averaged[2:]] == ["mobilenet_2_4", "mobilenet_2_5"]
    assert (tmp_path / "mobilenet_1_4" / "finished.json").exists()


def test_what_is_finished_is_not_made_again_and_a_try_is_two_steps(tmp_path):
    (tmp_path / "mix_0").mkdir()
    (tmp_path / "mix_0" / "finished.json").write_text("{}")
    tried = subprocess.run(["make", "-s", "campaign-try"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    found = commands(f"RUNS={tmp_path}", "SEEDS=0", f"OPTIONS={tried}")
    runs = [words[1:] for words in found if words[0] == "train"]
    names = [words[words.index("--name") + 1] for words in runs]
    assert "mix_0" not in names and "plain_0" in names and "plain_1" not in names
    config = parser().parse_args(["--config", str(ROOT / runs[0][0]), *runs[0][1:]])
    assert (config.trainer.max_steps, config.trainer.accelerator, config.ema) == (2, "cpu", 0)
    (ablation,) = [words for words in found if words[0] == "ablate"]
    settings = [word for option, word in zip(ablation, ablation[1:], strict=False) if option == "--set"]
    recipe = ROOT / ablation[1]
    config = parser().parse_args(["--config", str(recipe), *(f"--{setting}" for setting in settings)])
    assert config.trainer.max_steps == 2 and not config.cache
    assert re.fullmatch(r"model.init_args.\w+=[\w,]+", ablation[ablation.index("--vary") + 1])

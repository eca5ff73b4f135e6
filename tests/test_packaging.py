"""Files for users and contributors outside the package: versions and names agree everywhere."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

import flaxdl

pytestmark = pytest.mark.quick

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text())
WORKFLOW = (ROOT / ".github/workflows/ci.yml").read_text()
CI = (ROOT / ".ci/run").read_text()


def name_of(requirement):
    return re.split(r"[^\w.-]", requirement)[0].lower().replace("_", "-")


def readme_block(marker):
    """The block of the README that .ci/run runs, found by its own function."""
    function = re.search(r"^readme_block\(\) \{.*?^\}", CI, re.MULTILINE | re.DOTALL)
    assert function is not None
    return subprocess.run(
        ["bash", "-c", f"{function[0]}\nreadme_block {marker}"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
    )


def test_the_check_finds_the_commands_of_the_readme():
    for marker, last in (
        ("train", "flaxdl predict --workdir runs/digits_cnn "),
        ("test", "pytest"),
    ):
        assert f"readme_block {marker})" in CI
        found = readme_block(marker)
        assert found.returncode == 0
        assert last in found.stdout.splitlines()[-1]
        assert "```" not in found.stdout
    assert readme_block("nothing").returncode == 1


def test_the_current_version_is_cited_and_dated():
    changelog = (ROOT / "CHANGELOG.md").read_text()
    first, *released = re.findall(r"^## (.+)$", changelog, re.MULTILINE)
    assert first == "Unreleased"
    versions = [re.fullmatch(r"(\d+\.\d+\.\d+) - (\d{4}-\d\d-\d\d)", title) for title in released]
    assert all(versions), released
    assert versions[0].groups() == (flaxdl.__version__, str(CITATION["date-released"]))
    assert CITATION["version"] == flaxdl.__version__


def test_the_citation_has_what_its_format_requires():
    assert CITATION["cff-version"] == "1.2.0"
    assert CITATION["message"]
    assert PROJECT["project"]["description"].lower() in CITATION["title"].lower()
    assert CITATION["keywords"] == PROJECT["project"]["keywords"]
    assert CITATION["license"] == PROJECT["project"]["license"]
    assert CITATION["authors"] == [{"name": "The flaxdl contributors"}]


def test_the_workflow_installs_the_pythons_of_the_check():
    workflow = yaml.safe_load(WORKFLOW)
    steps = workflow["jobs"]["check"]["steps"]
    *_, run = (step["run"] for step in steps if "run" in step)
    assert run == "bash .ci/run"
    newest, oldest = (
        step["with"]["python-version"] for step in steps if "setup-python" in step.get("uses", "")
    )
    assert f">={oldest}" == PROJECT["project"]["requires-python"]
    assert newest == re.findall(r"^for version in ([\d.]+)", CI, re.MULTILINE)[0]
    classifiers = " ".join(PROJECT["project"]["classifiers"])
    versions = re.findall(r"Python :: (3\.\d+)", classifiers)
    assert (versions[0], versions[-1]) == (oldest, newest)
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        actions = [step["uses"] for step in job["steps"] if "uses" in step]
        assert all(re.fullmatch(r"actions/[\w-]+@v\d+", action) for action in actions)


@pytest.mark.parametrize("name", ["bug", "feature"])
def test_issue_forms_are_complete(name):
    form = yaml.safe_load((ROOT / f".github/ISSUE_TEMPLATE/{name}.yml").read_text())
    assert form["name"]
    assert form["description"]
    fields = [field["id"] for field in form["body"]]
    assert len(fields) == len(set(fields)) >= 3
    assert all(field["attributes"]["label"] for field in form["body"])


def test_commits_are_checked_by_the_tools_of_the_project():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    (local,) = config["repos"]  # local hooks: versions are in pyproject.toml only
    assert local["repo"] == "local"
    tools = {hook["entry"].split()[0] for hook in local["hooks"]}
    assert tools <= {name_of(text) for text in PROJECT["project"]["optional-dependencies"]["dev"]}
    assert tools == {"ruff", "pyright"}


def test_third_party_packages_are_those_that_are_installed():
    direct = {name_of(text) for text in PROJECT["project"]["dependencies"]}
    rows = re.findall(
        r"^\| ([\w.-]+) \| ([^|]+) \| ([^|]+) \|$",
        (ROOT / "THIRD_PARTY.md").read_text(),
        re.MULTILINE,
    )
    licenses = {name: license for name, license, _ in rows[1:]}
    # Packages for every platform; the others depend on the system or the Python version.
    lock = (ROOT / "requirements.lock").read_text()
    pinned = re.findall(r"^([\w.-]+)==[^ ]+( ;.*)? \\$", lock, re.MULTILINE)
    everywhere = {name for name, condition in pinned if not condition}
    assert direct <= everywhere | {"flax", "jax", "numpy"}  # with a version for each Python
    assert direct | everywhere <= set(licenses)
    assert set(licenses) <= {name for name, _ in pinned}
    free = "Apache|BSD|MIT|MPL|PSF|Python Software Foundation"
    assert not [name for name, license in licenses.items() if not re.search(free, license)]


def test_each_dependency_has_a_reason():
    text = (ROOT / "pyproject.toml").read_text()
    listed = (ROOT / "THIRD_PARTY.md").read_text()
    for requirement in PROJECT["project"]["dependencies"]:
        reason = re.search(rf'^    "{re.escape(requirement)}", +# (.+)$', text, re.MULTILINE)
        assert reason is not None, requirement
        assert f" | {reason[1]} |\n" in listed, requirement


def test_the_lock_names_no_registry():
    lock = (ROOT / "requirements.lock").read_text()
    assert "://" not in lock
    assert "index-url" not in lock

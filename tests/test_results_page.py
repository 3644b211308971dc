"""The page of results, from finished runs that no training made."""

import pytest
import yaml

from energytl import cli
from energytl.recipe import read
from energytl.report import report
from energytl.results import write_json

SETTINGS = {
    "network": "energytl.models.mlp",
    "data": "energytl.data.Digits",
    "pretrain": {"epochs": 3},
    "evaluation": {"max_drop": [0.01, 0.02]},
    "cases": {"ours": {"hardware.read": "BitSerialRead"}, "theirs": {"baseline": True}},
}
COMMENT = "# A tiny table\n# Of two methods.\n#\n#   energytl run recipes/tiny.yaml\n\n# not of the head\n"


@pytest.fixture
def page(tmp_path, synthetic, capsys):
    """page(*overrides): the text of the page about runs with these overrides."""
    recipes = tmp_path / "recipes"
    recipes.mkdir()
    (recipes / "tiny.yaml").write_text(COMMENT + yaml.safe_dump(SETTINGS, sort_keys=False), "utf-8")

    def written(*overrides):
        for order, case in enumerate(read(recipes / "tiny.yaml", list(overrides))):
            version = tmp_path / "logs" / "tiny" / case.name / "version_0"
            version.mkdir(parents=True)
            (version / "recipe.yaml").write_text(case.as_yaml(), "utf-8")
            energy = (order + 1) * 10.0
            result = synthetic([(0.01, 2 * energy, True), (0.02, energy, True)], baseline=case.name == "theirs")
            result |= {"case": case.name, "order": order, "finished": f"2026-01-0{order + 2}T03:04:05+00:00"}
            write_json(version / "result.json", result)
        if not overrides:
            report(tmp_path / "logs" / "tiny")  # draws the figures
        assert cli.main(["results", str(tmp_path / "logs" / "tiny"), "--recipes", str(recipes)]) == 0
        assert f"{recipes}/RESULTS.md" in capsys.readouterr().out
        return (recipes / "RESULTS.md").read_text("utf-8")

    return written


def test_the_page_has_tables_findings_figures_and_how_they_were_made(page, tmp_path):
    text = page()
    assert "## A tiny table\n\nOf two methods.\n\n```bash\nenergytl run recipes/tiny.yaml\n```" in text
    assert "not of the head" not in text
    assert "**least energy, paper units**\n\n| case | energy at 1 % drop | below baselines |" in text
    assert (
        "The best baseline takes 2.0× (1 % drop), 2.0× (2 % drop) the energy of ours, in paper units (one training)."
        in text
    )
    assert "* not modelled: wires" in text
    assert (
        "2026-01-02 to 2026-01-03, 1.0 minutes of all cases together, kept trainings not counted, seed 0; torch 2.9."
        in text
    )
    for name in ("least_energy", "accuracy_energy"):
        assert f"(tiny_{name}.png)" in text
        assert (tmp_path / "recipes" / f"tiny_{name}.png").read_bytes().startswith(b"\x89PNG")
    assert "depthwise_share" not in text


def test_sections_of_other_recipes_stay_as_they_are(page, tmp_path):
    other = "## Another\n\nText.\n\n```bash\nenergytl run recipes/other.yaml --seed=1\n```\n\n1.0 minutes in all.\n"
    other += "\n## By hand\n\nNo command.\n"
    old = "## An old head\n\n```bash\nenergytl run recipes/tiny.yaml\n```\n\nold numbers\n"
    first = page()
    (tmp_path / "recipes" / "RESULTS.md").write_text(first.split("## ")[0] + old + "\n" + other, "utf-8")
    run = ["results", str(tmp_path / "logs" / "tiny"), "--recipes", str(tmp_path / "recipes")]
    assert cli.main(run) == 0
    again = (tmp_path / "recipes" / "RESULTS.md").read_text("utf-8")
    assert again == first + "\n" + other
    assert cli.main(run) == 0
    assert (tmp_path / "recipes" / "RESULTS.md").read_text("utf-8") == again


def command(text):
    (line,) = (line for line in text.splitlines() if line.startswith("energytl run recipes/tiny.yaml"))
    return line


@pytest.mark.parametrize(
    ("overrides", "shown"),
    [
        (["--seed=3", "--pretrain.epochs=5"], "--pretrain.epochs=5 --seed=3"),
        (["--weights=/home/me/w.pt"], "--weights=PATH"),
        (["--pretrain=null"], "--pretrain=null"),
        (["--evaluation.max_drop=[0.1, 0.2]"], "'--evaluation.max_drop=[0.1, 0.2]'"),
        (["--hardware.fluctuation.floor=0.1"], "--hardware.fluctuation.floor=0.1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_command_says_every_setting_that_the_recipe_does_not(page, overrides, shown):
    assert command(page(*overrides)) == f"energytl run recipes/tiny.yaml {shown}"


def test_the_command_of_another_class_names_it(page, tmp_path):
    line = command(page("--network=energytl.models.lenet"))
    assert "--network=energytl.models.lenet" in line.split()
    words = line.removeprefix("energytl run recipes/tiny.yaml ").split()
    (first, _) = read(tmp_path / "recipes" / "tiny.yaml", words)
    (expected, _) = read(tmp_path / "recipes" / "tiny.yaml", ["--network=energytl.models.lenet"])
    assert first.resolved() == expected.resolved()


def test_a_recipe_that_is_gone_leaves_its_runs_their_name(page, tmp_path):
    page()
    (tmp_path / "recipes" / "tiny.yaml").unlink()
    out = tmp_path / "elsewhere.md"
    arguments = ["results", str(tmp_path / "logs" / "tiny"), "--recipes", str(tmp_path / "recipes")]
    assert cli.main([*arguments, "--page", str(out)]) == 0
    assert "## tiny\n\n```bash\nenergytl run recipes/tiny.yaml\n```" in out.read_text("utf-8")
    assert (tmp_path / "tiny_least_energy.png").is_file()


def test_folders_without_finished_runs_are_one_line(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for folder in ("empty", "nowhere"):
        assert cli.main(["results", str(tmp_path / folder), "--recipes", str(tmp_path)]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert line.startswith(f"energytl: {tmp_path}/{folder} holds no finished run: energytl run ")
    assert not (tmp_path / "RESULTS.md").exists()


def test_a_page_that_cannot_be_written_is_one_line(page, tmp_path, capsys):
    page()
    arguments = ["results", str(tmp_path / "logs" / "tiny"), "--recipes", str(tmp_path / "recipes")]
    assert cli.main([*arguments, "--page", str(tmp_path / "nowhere" / "page.md")]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "No such file or directory" in line


def test_results_wants_folders_and_knows_no_other_words(tmp_path):
    for arguments in (["results"], ["results", str(tmp_path), "--seed=1"]):
        with pytest.raises(SystemExit) as stopped:
            cli.main(arguments)
        assert stopped.value.code == 2

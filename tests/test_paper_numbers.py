"""Published numbers, to their printed digits."""

import csv
import json
from io import StringIO
from pathlib import Path

import pytest

from energytl import cli
from energytl.evaluation import digital_ranks, top_accuracies
from energytl.recipe import read
from energytl.run import prepare

RECIPES = Path(__file__).parents[1] / "recipes"

# Wang et al. 2021, tables 1 and 2: network, method, cells (millions), delay (µs)
TABLES = {
    1: """vgg16,binarized encoding,74,2.8
vgg16,weight scaling,15,2.8
vgg16,fluctuation compensation,15,14
vgg16,A+B,15,2.8
vgg16,A+B+C,15,14
resnet18,binarized encoding,56,6.8
resnet18,weight scaling,11,6.8
resnet18,fluctuation compensation,11,34
resnet18,A+B,11,6.8
resnet18,A+B+C,11,34
mobilenet,binarized encoding,16,4.6
mobilenet,weight scaling,3.2,4.6
mobilenet,fluctuation compensation,3.2,23
mobilenet,A+B,3.2,4.6
mobilenet,A+B+C,3.2,23""",
    2: """resnet18,binarized encoding,58,151
resnet18,weight scaling,12,151
resnet18,fluctuation compensation,12,756
resnet18,A+B,12,151
resnet18,A+B+C,12,756
resnet34,binarized encoding,109,207
resnet34,weight scaling,22,207
resnet34,fluctuation compensation,22,1033
resnet34,A+B,22,207
resnet34,A+B+C,22,1033""",
}


def as_printed(value: float, like: str) -> str:
    return f"{value:.{len(like.partition('.')[2])}f}"


@pytest.mark.slow
@pytest.mark.parametrize("number", TABLES)
def test_cells_and_delay_of_wangs_tables(number, capsys):
    assert cli.main(["cost", str(RECIPES / f"wang_table{number}_cost.yaml"), "--json", "--data.root=none"]) == 0
    costs = json.loads(capsys.readouterr().out)
    rows = list(csv.reader(StringIO(TABLES[number])))
    assert list(costs) == [f"{network} {method}" for network, method, _, _ in rows]
    for network, method, cells, delay in rows:
        cost = costs[f"{network} {method}"]
        assert as_printed(cost["cells"] / 1e6, cells) == cells
        assert as_printed(cost["latency_s"] * 1e6, delay) == delay
        assert cost["energy_total_j"] is None  # no periphery: not modelled, not zero


def test_resnet20_has_its_published_accuracy(packed_data, data_root):
    (weights,) = (packed_data / "weights" / "cifar10").glob("akamaster_resnet20-*.th")
    overrides = [f"--data.root={data_root}", f"--weights={weights}", "--data.batch_size=500"]
    case = read(RECIPES / "cifar10_resnet20.yaml", overrides)[0]
    recipe = prepare(case, needs_data=True)
    (accuracy,) = top_accuracies(digital_ranks(recipe.network, recipe.data.test_dataloader(), "")[None])
    assert abs(100 * accuracy - 91.73) < 0.015  # of one of 10,000 images processors may round the logits otherwise

"""Tables, sentences and figures from results that no run made."""

import json

import pytest

from energytl.plots import figures, learning_costs
from energytl.report import report, text
from energytl.results import POINT_KEYS, summarise, write_json
from energytl.tables import (
    Table,
    accuracies,
    below_baselines,
    convergence,
    depthwise_shares,
    findings,
    least_energies,
    merge_seeds,
    notes,
    tables,
)


@pytest.fixture
def methods(synthetic):
    """Two baselines and a method at three drops; the first drop is too small for one baseline and for the last."""
    return {
        "bits": synthetic([(0.0, 900.0, True), (0.01, 400.0, True), (0.02, 100.0, True)], baseline=True),
        "repeats": synthetic([(0.0, 50.0, False), (0.01, 200.0, True), (0.02, 120.0, True)], baseline=True),
        "ours": synthetic([(0.0, 30.0, True), (0.01, 20.0, True), (0.02, 25.0, True)], total_j=2e-9),
        "poor": synthetic([(0.0, 40.0, False), (0.01, 500.0, True), (0.02, 10.0, True)]),
    }


def columns(table, name):
    """Cells of a column by the first cell of their row."""
    head, *rows = table.rows
    return {row[0]: row[head.index(name)] for row in rows}


def test_the_least_energy_is_compared_with_the_best_baseline_that_gets_there(methods):
    assert [below_baselines(methods, "ours", drop) for drop in (0.0, 0.01, 0.02)] == [30, 10, 4]
    assert below_baselines(methods, "bits", 0.01) == 0.5
    assert below_baselines(methods, "poor", 0.01) == 0.4


def test_what_does_not_get_there_is_not_compared(methods):
    assert below_baselines(methods, "poor", 0.0) is None
    assert below_baselines(methods, "ours", 0.05) is None
    assert below_baselines({"ours": methods["ours"]}, "ours", 0.01) is None


def test_where_no_baseline_gets_there_the_comparison_is_with_its_own_best(methods):
    methods["bits"]["points"][0]["reached"] = False
    assert below_baselines(methods, "ours", 0.0) == 900 / 30  # it was found, and the test images refute it
    methods["bits"]["points"][0]["found"] = False
    assert below_baselines(methods, "ours", 0.0) == pytest.approx(50 / 30)


def test_baselines_are_those_of_the_same_condition(methods):
    for case, result in methods.items():
        result["condition"] = "hot" if case in ("bits", "ours") else "cold"
    assert below_baselines(methods, "ours", 0.01) == 400 / 20
    assert below_baselines(methods, "poor", 0.01) == 200 / 500


def test_energies_that_do_not_keep_the_accuracy_stand_with_their_drop_in_brackets(methods):
    table = least_energies(methods)
    assert columns(table, "energy at 0 % drop") == {
        "bits": "900",
        "repeats": "50 (-3.10 %)",
        "ours": "30",
        "poor": "40 (-3.10 %)",
    }
    assert "published" not in table.rows[0]
    assert len(table.rows[0]) == 1 + 3 * 2 + 2
    assert {len(row) for row in table.rows} == {len(table.rows[0])}


def test_published_ratios_appear_where_a_case_has_numbers(methods):
    methods["bits"]["published"], methods["repeats"]["published"] = [100.0, 60.0, 50.0], [80.0, 90.0, 70.0]
    methods["ours"]["published"] = [4.0, 3.0, 2.0]
    methods["poor"]["published"] = [4.0, 3.0]  # of other drops
    table = least_energies(methods)
    head, *rows = table.rows
    (ours,) = (row for row in rows if row[0] == "ours")
    assert head[:4] == ("case", "energy at 0 % drop", "below baselines", "published")
    assert [cell for name, cell in zip(head, ours, strict=True) if name == "published"] == ["20×", "20×", "25×"]
    assert columns(table, "published")["poor"] == ""
    assert [cell for name, cell in zip(head, ours, strict=True) if name == "below baselines"] == ["30×", "10×", "4.0×"]
    assert {len(row) for row in table.rows} == {len(head)}


def test_published_numbers_belong_to_the_drops_of_their_own_case(synthetic):
    results = {
        "bits": synthetic([(0.0, 900.0, True), (0.02, 100.0, True)], baseline=True, published=[100.0, 60.0]),
        "ours": synthetic([(0.02, 10.0, True), (0.01, 20.0, True)], published=[3.0, 5.0]),
    }
    head, _, ours = least_energies(results).rows
    assert [cell for name, cell in zip(head, ours, strict=True) if name == "published"] == ["", "", "20×"]


def test_every_point_is_a_row_sorted_by_its_drop_with_budgets_last(synthetic):
    result = synthetic([(0.1, 10.0, True), (0.005, 90.0, False), (None, 50.0), (0.02, 20.0, True)])
    result["points"][2]["budget"] = 51.0
    (table,) = (table for table in tables({"a": result}) if table.title == "every point")
    assert [row[0] for row in table.rows[1:]] == ["0.5 % not reached", "2 %", "10 %", "budget 51"]
    assert columns(table, "drop % (95 %)")["2 %"] == "3.10 (2.10 to 4.10)"
    assert columns(table, "drop % (95 %)")["budget 51"] == "3.10 (2.10 to 4.10)"
    assert columns(table, "energy (paper)")["budget 51"] == "50"


def test_cases_of_one_point_have_the_plain_table(synthetic):
    (table,) = tables({"a": synthetic([(None, 10.0)])})
    assert columns(table, "energy (paper)") == {"a": "10"}
    assert columns(table, "cells") == {"a": "6,272"}


def test_a_digital_network_that_has_not_learnt_the_data_is_at_chance_not_unmeasured(synthetic):
    point = [(None, 10.0)]
    priced = synthetic(point, accuracy_digital=None, accuracy_median=None, accuracy_q25=None)
    results = {"known": synthetic(point), "new": synthetic(point, accuracy_digital=None), "priced": priced}
    (table,) = tables(results)
    assert columns(table, "digital %") == {"known": "93.00", "new": "at chance", "priced": "not measured"}


def test_tables_escape_what_html_and_markdown_would_read():
    table = Table("a < b", [("case", "x"), ("A|B <i>", "1")])
    assert "A|B &lt;i&gt;" in table.as_html()
    assert "a &lt; b" in table.as_html()
    assert table.as_markdown().splitlines() == [
        "**a &lt; b**",
        "",
        "| case | x |",
        "|---|---|",
        "| A\\|B &lt;i> | 1 |",
    ]
    assert table.as_text().splitlines() == ["a < b", "case     x", "----------", "A|B <i>  1"]
    assert Table("", table.rows).as_markdown().startswith("| case")


# sentences


def test_gains_are_said_of_what_is_no_baseline_at_the_drops_it_reaches(methods):
    said = findings(methods)
    assert (
        "The best baseline takes 30× (0 % drop), 10× (1 % drop), 4.0× (2 % drop) the energy of ours, in paper units "
        "(one training)." in said
    )
    assert not any(" of bits, in" in sentence or " of repeats, in" in sentence for sentence in said)
    (poor,) = (sentence for sentence in said if " of poor, in paper units" in sentence)
    assert "0 % drop" not in poor


def test_ratios_to_baselines_that_do_not_get_there_say_so(methods):
    for case in ("bits", "repeats"):
        methods[case]["points"][0] |= {"reached": False, "found": False}
    assert columns(least_energies(methods), "below baselines")["ours"] != ""
    (ours,) = (row for row in least_energies(methods).rows if row[0] == "ours")
    assert ours[2].endswith("× (own best)")
    (said,) = (sentence for sentence in findings(methods) if " of ours, in paper units" in sentence)
    assert "(0 % drop, which it does not reach), 10× (1 % drop)" in said


def test_what_most_seeds_miss_has_no_ratio_to_baselines_that_do_not_get_there_either(synthetic):
    results = {f"A {n}": synthetic([(0.0, 10.0, n == 0)], method="A", seed=n) for n in range(3)}
    results["b"] = synthetic([(0.0, 80.0, False)], baseline=True)
    assert columns(least_energies(results), "below baselines") == {"A, 3 seeds": "", "b": ""}


def test_the_drop_of_a_single_point_stands_with_its_interval_and_is_left_out_where_none_is_asked(synthetic):
    *_, searched = tables({"a": synthetic([(0.01, 5.0, True)])})
    assert columns(searched, "drop % (95 %)") == {"a": "3.10 (2.10 to 4.10)"}
    *_, plain = tables({"a": synthetic([(None, 5.0)])})
    assert "drop % (95 %)" not in plain.rows[0]
    seeds = {f"A {n}": synthetic([(0.01, 5.0, True)], method="A", seed=n) for n in range(2)}
    *_, merged = tables(seeds)
    assert columns(merged, "drop % (95 %)") == {"A, 2 seeds": "3.10"}


def test_gains_at_one_drop_are_shown_and_said_where_there_are_baselines(synthetic):
    results = {
        "bits": synthetic([(0.02, 100.0, True)], baseline=True),
        "ours": synthetic([(0.02, 5.0, True)]),
    }
    assert "The best baseline takes 20× (2 % drop) the energy of ours, in paper units (one training)." in findings(
        results
    )
    assert columns(least_energies(results), "below baselines") == {"bits": "1.0×", "ours": "20×"}
    assert len(least_energies({"ours": results["ours"]}).rows) == 1
    alone = synthetic([(0.01, 9.0, True), (0.02, 5.0, True)], published=[4.0, 3.0])
    assert least_energies({"ours": alone}).rows[0][1:3] == ("energy at 1 % drop", "energy at 2 % drop")


def test_it_is_said_where_the_circuits_around_the_cells_turn_the_order(methods):
    (turned,) = (sentence for sentence in findings(methods) if sentence.startswith("At 1 % drop"))
    said = "At 1 % drop ours spends least in paper units, ours in the cells' joules and bits with converters"
    assert turned.startswith(said)
    assert "where ours takes 2.0 times as much" in turned
    methods["ours"]["points"][1]["energy_total_j"] = 1e-10
    said = "At 1 % drop ours spends least: in paper units, in the cells' joules and in total."
    assert said in findings(methods)


def grouped(synthetic):
    return {
        "A hot": synthetic([(0.01, 100.0, True)], method="A", condition="hot"),
        "A cold": synthetic([(0.01, 60.0, False)], method="A", condition="cold"),
        "B hot": synthetic([(0.01, 20.0, True)], method="B", condition="hot"),
        "B cold": synthetic([(0.01, 30.0, True)], method="B", condition="cold"),
    }


def test_methods_are_compared_under_every_condition(synthetic):
    results = grouped(synthetic)
    hot, compared = findings(results)
    assert hot.startswith("At 1 % drop (hot) B spends least: in paper units")
    assert (
        compared == "A takes 5.0× (hot), 2.0× (cold, not reached by A) the energy of B, in paper units (one training)."
    )
    results["B cold"] |= {"reached": False, "points": [results["B cold"]["points"][0] | {"reached": False}]}
    compared = "A takes 5.0× (hot), 2.0× (cold, not reached by A and B) the energy of B, in paper units (one training)."
    assert findings(results)[-1] == compared


def test_methods_without_a_common_condition_are_not_compared(synthetic):
    results = grouped(synthetic)
    assert findings({case: results[case] for case in ("A hot", "B cold")}) == []


def test_depthwise_layers_share_is_that_of_layers_with_groups(synthetic):
    result = synthetic([(None, 10.0)], groups=(1, 32, 1))  # of 1, 2 and 3 nJ
    assert depthwise_shares(result) == pytest.approx(
        {"cells": 1 / 3, "cells' energy": 1 / 3, "latency": 1 / 3, "total energy": 1 / 3}
    )
    result["layers"][1]["latency_s"], result["layers"][0]["energy_total_j"] = 8e-6, None
    assert depthwise_shares(result) == pytest.approx({"cells": 1 / 3, "cells' energy": 1 / 3, "latency": 0.8})
    (sentence,) = findings({"a": result})
    assert sentence == "a: depthwise layers take 33 % of the cells, 33 % of the cells' energy, 80 % of the latency."


def test_notes_say_what_was_not_reached_and_how_exact_reads_compare(synthetic):
    points = [(0.01, 10.0, False), (0.02, 5.0, True)]
    result = synthetic(points, accuracies_chips=[0.8], accuracy_chips_median=0.8)
    result |= {"accuracy_chips_q25": 0.7, "accuracy_chips_q75": 0.9}
    result["points"][0]["exact"] = {"images": 100, "accuracy": 0.9, "difference": 0.01, "standard_error": 0.01}
    result["points"][1]["exact"] = {"images": 100, "accuracy": 0.9, "difference": -0.03, "standard_error": 0.01}
    lost, _, chips, exact, missing = notes({"a": result})
    assert lost.startswith("1 % drop is reached by no case: ")
    assert chips.startswith("chips: of each, every cell keeps one state for its life")
    assert columns(accuracies({"a": result}), "median of chips %") == {"a": "80.00"}
    assert "(100 images a point): 1 of 2 points within" in exact
    assert exact.endswith("farthest: a, -3.00 ± 1.96 %")
    assert missing == "not modelled: wires"


def test_one_note_a_drop_names_the_cases_that_miss_it(synthetic):
    missed = synthetic([(0.0, 10.0, False), (0.01, 9.0, False), (0.02, 8.0, True)])
    kept = synthetic([(0.02, 8.0, True), (0.01, 10.0, True), (0.0, 11.0, False)])
    none, one, *_ = notes({"a": missed, "b": kept, "c": missed})
    assert none.startswith("0 % drop is reached by no case: ")
    assert one.startswith("1 % drop is not reached by a; c: ")
    kept = {"b": synthetic([(0.01, 10.0, True)], history=[]), "c": synthetic([(None, 10.0)], history=[])}
    assert notes(kept) == ["not modelled: wires"]


def refuted(result, place=0):
    """The result with a point whose drop the choice found, and the test images refute."""
    points = [dict(point) for point in result["points"]]
    points[place]["reached"] = False
    return result | {"points": points}


def test_what_the_test_images_refute_is_told_apart_from_what_no_choice_found(synthetic):
    points = [(0.01, 10.0, True), (0.02, 8.0, False), (0.05, 6.0, True)]
    results = {
        "a": refuted(synthetic(points)),
        "b": synthetic([(0.01, 10.0, True), (0.02, 9.0, True), (0.05, 7.0, True)]),
    }
    every = next(table for table in tables(results) if table.title == "every point")
    assert [row[:2] for row in every.rows[1:]] == [
        ("1 % missed", "a"),
        ("1 %", "b"),
        ("2 % not reached", "a"),
        ("2 %", "b"),
        ("5 %", "a"),
        ("5 %", "b"),
    ]
    missed, lost, *_ = notes(results)
    assert missed.startswith("1 % drop is not borne out by a: found on the images held out, but on test images")
    assert lost.startswith("2 % drop is not reached by a: on the images held out less accurate")
    assert columns(least_energies(results), "energy at 1 % drop")["a"] == "10 (-3.10 %)"


def test_what_the_test_images_refute_is_not_compared(methods):
    assert below_baselines(methods | {"ours": refuted(methods["ours"], 1)}, "ours", 0.01) is None
    assert below_baselines(methods | {"repeats": refuted(methods["repeats"], 1)}, "ours", 0.01) == 400 / 20


def test_seeds_find_a_drop_if_most_do(synthetic):
    of_seeds = [synthetic([(0.01, 10.0 + n, True)], method="A", seed=n) for n in range(3)]
    (merged,) = merge_seeds({"A 0": of_seeds[0], "A 1": refuted(of_seeds[1]), "A 2": refuted(of_seeds[2])}).values()
    assert (merged["points"][0]["found"], merged["points"][0]["reached"]) == (True, False)
    lost = synthetic([(0.01, 9.0, False)], method="A", seed=3)
    (merged,) = merge_seeds({"A 0": of_seeds[0], "A 1": lost, "A 2": lost | {"seed": 4}}).values()
    assert (merged["points"][0]["found"], merged["points"][0]["reached"]) == (False, False)


def test_notes_say_on_which_images_was_chosen_and_told(synthetic):
    chosen = {"chosen_on": {"images": 800, "of": "training"}, "tested_images": 1000}
    result = synthetic([(0.01, 10.0, True)], **chosen)
    first, *_ = notes({"a": result, "b": result, "c": synthetic([(None, 1.0)])})
    assert first.startswith("ρ, and which network of a family, were chosen on 800 images held out from training; ")
    assert "told of 1,000 test images" in first
    of_test = result | {"chosen_on": {"images": 500, "of": "test"}, "tested_images": 500}
    other, *_ = notes({"a": of_test})
    assert "500 images held out from the test, as the weights may have learnt from all others" in other
    assert not any("held out" in note for note in notes({"c": synthetic([(None, 1.0)])}))


def test_what_is_one_training_is_said(synthetic):
    assert "one training: each case; other seeds" in " ".join(notes({"a": synthetic([(None, 1.0)])}))
    results = {f"A {n}": synthetic([(None, 1.0)], method="A", seed=n) for n in range(3)}
    assert "one training" not in " ".join(notes(results))
    assert "one training: b; other seeds" in " ".join(notes(results | {"b": synthetic([(None, 1.0)])}))
    assert "one training" not in " ".join(notes({"a": synthetic([(None, 1.0)], history=[])}))
    pretrained = synthetic([(None, 1.0)], history=[], stages=[{"stage": "pretrain"}])
    assert "one training: each case" in " ".join(notes({"a": pretrained}))


def test_a_point_that_two_drops_share_is_one_comparison_with_exact_reads(synthetic):
    result = synthetic([(0.01, 10.0, True), (0.02, 10.0, True), (0.03, 5.0, True)])
    for point, difference in zip(result["points"], (0.0, 0.0, 0.05), strict=True):
        point["exact"] = {"images": 100, "accuracy": 0.9, "difference": difference, "standard_error": 0.01}
    assert "1 of 2 points within" in notes({"a": result})[1]


# summary, report and figures


def test_the_summary_holds_the_points_of_cases_with_several(synthetic):
    summary = summarise({"one": synthetic([(0.01, 5.0, True)]), "two": synthetic([(0.01, 5.0, True), (None, 7.0)])})
    assert "points" not in summary["one"]
    assert [set(point) for point in summary["two"]["points"]] == [set(POINT_KEYS)] * 2
    assert [point["energy_paper"] for point in summary["two"]["points"]] == [5.0, 7.0]


def test_a_report_has_tables_findings_and_every_figure(methods, tmp_path):
    for order, (case, result) in enumerate(methods.items()):
        version = tmp_path / "tiny" / case / "version_0"
        version.mkdir(parents=True)
        write_json(version / "result.json", result | {"case": case, "order": order})
    printed = report(tmp_path / "tiny")
    assert printed == text(methods)
    for part in ("least energy, paper units", "every point", "the energy of ours", "not modelled: wires"):
        assert part in printed
    assert {path.stem for path in (tmp_path / "tiny").glob("*.png")} == set(figures(methods))
    page = (tmp_path / "tiny" / "report.html").read_text("utf-8")
    assert page.count("<img") == len(figures(methods))
    assert len(json.loads((tmp_path / "tiny" / "summary.json").read_text())["ours"]["points"]) == 3


def lines(axes):
    """What is drawn, by its label."""
    return {line.get_label(): list(line.get_ydata()) for line in axes.lines if not line.get_label().startswith("_")}


def test_least_energies_are_drawn_and_open_where_they_are_not_reached(methods):
    (axes,) = figures(methods)["least_energy"].axes
    assert lines(axes)["ours"] == [30, 20, 25]
    open_markers = [line for line in axes.lines if line.get_markerfacecolor() == "white"]
    assert sorted(float(line.get_ydata()[0]) for line in open_markers) == [40, 50]


def test_published_energies_are_drawn_beside_ours(methods):
    methods["ours"]["published"] = [4.0, 3.0, 2.0]
    ours, theirs = figures(methods)["least_energy"].axes
    assert set(lines(ours)) == set(methods)
    assert lines(theirs) == {"ours": [4.0, 3.0, 2.0]}


def test_energies_by_condition_are_a_line_a_method(synthetic):
    paper, joules = figures(grouped(synthetic))["energy_by_condition"].axes
    assert lines(paper) == {"A": [100, 60], "B": [20, 30]}
    assert [label.get_text() for label in paper.get_xticklabels()] == ["hot", "cold"]
    assert lines(joules) == {"A": [1e-9, 1e-9], "B": [1e-9, 1e-9]}


def test_joules_within_a_decade_have_labels(synthetic):
    results = grouped(synthetic)
    for result, energy in zip(results.values(), (1.4e-6, 7.1e-6, 1.4e-6, 7.1e-6), strict=True):
        result["points"][0]["energy_total_j"] = energy
    _, joules = figures(results)["energy_by_condition"].axes
    low, high = joules.get_ylim()
    ticks = zip(joules.get_yticks(), joules.get_yticklabels(), strict=True)
    assert [label.get_text() for tick, label in ticks if low <= tick <= high] == ["2 µJ", "5 µJ"]


def test_energies_by_condition_show_the_least_and_the_largest_of_the_seeds(synthetic):
    points = [[(0.01, 9.0, True)], [(0.01, 7.0, True)], [(0.01, 1.0, False)]]
    paper, joules = figures(
        {f"A {n}": synthetic(p, method="A", condition="hot", seed=n) for n, p in enumerate(points)}
    )["energy_by_condition"].axes
    assert lines(paper) == {"A": [9]}
    assert [7, 9] in [list(line.get_ydata()) for line in paper.lines]  # the third does not get there
    assert len(joules.lines) == len(paper.lines) - 1


def test_depthwise_shares_are_bars(synthetic):
    results = {"a": synthetic([(None, 10.0)], groups=(1, 32)), "b": synthetic([(None, 10.0)])}
    (axes,) = figures(results)["depthwise_share"].axes
    assert [bar.get_height() for bar in axes.containers[0]] == [50, 0]
    assert len(axes.containers) == 4


def test_accuracy_is_drawn_against_energy_with_the_curves_of_the_search(synthetic):
    asked = {"network": 0, "energy_weight": 0.5}
    drops = [(10.0, 0.83), (80.0, 0.13)]  # on the images held out, of which the digital network has 95 % right
    curve = [asked | {"energy_paper": energy, "accuracy": 0.95 - drop, "drop": drop} for energy, drop in drops]
    results = {"a": synthetic([(0.01, 70.0, True), (0.1, 20.0, True)], curves=curve)}
    paper, _ = figures(results)["accuracy_energy"].axes
    assert any(list(line.get_ydata()) == pytest.approx([10.0, 80.0]) for line in paper.lines)  # below 93 % of the test
    (case,) = (container for container in paper.containers if container.get_label() == "a")
    assert list(case.lines[0].get_xdata()) == [20, 70]


@pytest.mark.parametrize("cases", [10, 20])
def test_every_case_has_a_colour_of_its_own(synthetic, cases):
    results = {str(number): synthetic([(0.01, 10.0, True)]) for number in range(cases)}
    paper, _ = figures(results)["accuracy_energy"].axes
    assert len({container.lines[0].get_color() for container in paper.containers}) == cases


def test_figures_without_numbers_are_left_out(synthetic):
    made = figures({"a": synthetic([(None, 10.0)])})
    assert not {"least_energy", "energy_by_condition", "depthwise_share", "training_on_chip"} & set(made)


@pytest.fixture
def chips(synthetic):
    """Two methods under two conditions, one of them over chips, with top-5 and a paper's words."""

    def case(accuracy, **changes):
        return synthetic([(None, 1.0)], accuracies=[accuracy], accuracy_median=accuracy, **changes)

    several = {"accuracies_chips": [0.5, 0.7, 0.6], "accuracy_chips_median": 0.6}
    several |= {"accuracy_chips_q25": 0.55, "accuracy_chips_q75": 0.65}
    return {
        "calm": case(0.8, method="six", condition="σ = 0 %", accuracy_top5=0.95),
        "varied": case(0.6, method="six", condition="σ = 50 %", paper="±3 %", **several),
        "many": case(0.9, method="ten", condition="σ = 0 %"),
        "few": case(0.7, method="ten", condition="σ = 50 %"),
    }


def test_accuracies_stand_with_top_k_chips_and_what_the_paper_says(chips):
    table = accuracies(chips)
    assert table.rows[0][2:] == ("top-5 %", "chips", "median of chips %", "range %", "in the paper")
    assert columns(table, "top-5 %") == {"calm": "95.00", "varied": "", "many": "", "few": ""}
    assert columns(table, "range %")["varied"] == "50.00-70.00"
    assert columns(table, "median of chips %")["varied"] == "60.00"
    assert columns(table, "in the paper")["varied"] == "±3 %"
    assert table in tables(chips)
    assert len(accuracies({"plain": {"accuracy_median": 0.5}}).rows) == 1  # no table for nothing to say


def test_accuracies_under_conditions_are_drawn_with_their_range(chips):
    made = figures(chips)
    assert "energy_by_condition" not in made
    (axes,) = made["accuracy_by_condition"].axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["σ = 0 %", "σ = 50 %"]
    six, ten = axes.containers
    assert list(six.lines[0].get_ydata()) == pytest.approx([80, 60])
    assert list(ten.lines[0].get_ydata()) == pytest.approx([90, 70])
    (bars,) = six.lines[2]
    assert [segment[:, 1].tolist() for segment in bars.get_segments()] == [
        pytest.approx([80, 80]),
        pytest.approx([50, 70]),
    ]


def test_histograms_are_drawn_a_panel_a_case(chips):
    chips["many"]["histograms"] = {
        "conv": {"edge": 1.0, "counts": [9, 9, 9]},
        "fc": {"edge": 1.5, "counts": [2, 0, 5]},
    }
    (axes,) = figures(chips)["weights"].axes
    assert axes.get_title() == "many, layer fc"
    assert [bar.get_height() for bar in axes.patches] == [2, 0, 5]
    assert [bar.get_x() + bar.get_width() / 2 for bar in axes.patches] == pytest.approx([-1, 0, 1])


# convergence


def measured(crossings, images=range(0, 1001, 100), window=1, batch=1):
    """What a case says of its convergence: from 50 to 96 % at the crossings."""
    accuracy = [[0.96 if count >= crossing else 0.5 for count in images] for crossing in crossings]
    steps = [count // batch for count in images]
    return {"target": 0.94, "window": window, "images": list(images), "steps": steps, "accuracy": accuracy}


@pytest.fixture
def transfer(synthetic):
    """Scratch and transfer under three conditions, four runs each: slower, at once, never."""
    times = {
        "scratch": {"N = 0": (600, 700, 800, 9999), "N = 3": (600, 600, 600, 600), "N = 8": (500, 500, 500, 500)},
        "transfer": {"N = 0": (0, 0, 0, 100), "N = 3": (200, 200, 200, 200), "N = 8": (900, 9999, 9999, 9999)},
    }
    return {
        f"{method} {condition}": synthetic(
            [(None, 10.0)],
            method=method,
            condition=condition,
            baseline=method == "scratch",
            accuracies=[0.9],
            convergence=measured(crossings),
            paper="3.5 times" if (method, condition) == ("transfer", "N = 3") else None,
        )
        for method, by_condition in times.items()
        for condition, crossings in by_condition.items()
    }


def test_convergence_is_a_row_for_each_method_and_condition(transfer):
    table = convergence(transfer)
    assert table in tables(transfer)
    assert table.title == "training until 94 %"
    head, *rows = table.rows
    assert head == (
        *("case", "condition", "runs", "before training %", "images to 94 %", "quartiles", "never"),
        *("times faster than scratch (95 %)", "final %", "final quartiles", "in the paper"),
    )
    assert [row[2:] for row in rows] == [
        ("4", "50.00", "750", "675 to never", "1 of 4", "", "96.00", "84.50-96.00", ""),
        ("4", "50.00", "600", "600", "0 of 4", "", "96.00", "96.00-96.00", ""),
        ("4", "50.00", "500", "500", "0 of 4", "", "96.00", "96.00-96.00", ""),
        ("4", "96.00", "at once", "at once to 25", "0 of 4", "≥ 7.5× (≥ 6.0)", "96.00", "96.00-96.00", ""),
        ("4", "50.00", "200", "200", "0 of 4", "3.0× (3.0 to 3.0)", "96.00", "96.00-96.00", "3.5 times"),
        ("4", "50.00", "never", "never", "3 of 4", "0× (0 to 0.56)", "50.00", "50.00-61.50", ""),
    ]
    assert len(accuracies(transfer).rows) == 1  # the paper's words stand above


def test_convergence_is_said_in_sentences_with_notes(transfer):
    assert findings(transfer) == [
        "transfer reaches 94 % in at least 7.5 times (≥ 6.0) fewer images than scratch (N = 0).",
        "transfer reaches 94 % in 3.0 times (3.0 to 3.0) fewer images than scratch (N = 3).",
        "transfer does not reach 94 % in most runs, scratch does (N = 8).",
    ]
    never, bounds = (note for note in notes(transfer) if note.startswith(("never", "≥")))
    assert never.startswith("never: ")
    assert bounds.startswith("≥ and ≤: ")


@pytest.mark.parametrize(
    ("scratch", "own", "said"),
    [
        ((200, 200), (400, 400), "own is slower to 94 % than scratch: 0.50 times (0.50 to 0.50) as fast."),
        (
            (200, 600, 700),
            (300, 400, 900),
            "own is not clearly faster or slower to 94 % than scratch: 1.5 times (0.22 to 2.3).",
        ),
        ((9999, 9999), (400, 400), "own reaches 94 %, scratch does not in most runs."),
        ((9999, 9999), (9999, 9999), "Neither own nor scratch reaches 94 % in most runs."),
        ((600,), (300,), "own reaches 94 % in 2.0 times fewer images than scratch."),
    ],
)
def test_what_is_not_faster_is_said_too(synthetic, scratch, own, said):
    results = {
        name: synthetic([(None, 1.0)], convergence=measured(times), baseline=name == "scratch")
        for name, times in (("scratch", scratch), ("own", own))
    }
    assert findings(results) == [said]


def test_of_many_comparisons_the_largest_and_smallest_are_said(transfer, synthetic):
    results = {}
    for i in range(1, 10):
        for method, crossing in (("scratch", 900), ("transfer", 100 * i)):
            case = synthetic([(None, 1.0)], method=method, condition=f"N = {i}", baseline=method == "scratch")
            results[f"{method} {i}"] = case | {"convergence": measured([crossing] * 3)}
    first, last = findings(results)
    assert "in 9.0 times" in first
    assert "than scratch (N = 9): 1.0 times" in last


def test_single_runs_in_batches_tell_iterations_and_nothing_of_spread(synthetic):
    results = {
        case: synthetic([(None, 1.0)], convergence=measured([crossing], range(100, 1001, 100), 2, 50), paper="5")
        for case, crossing in (("a", 300), ("b", 9999))
    }
    table = convergence(results)
    assert table.title == "training until 94 % (mean of 2 measurements)"
    assert table.rows == [
        ("case", "runs", "images to 94 %", "iterations", "final %", "in the paper"),
        ("a", "1", "400", "8", "96.00", "5"),
        ("b", "1", "never", "never", "50.00", "5"),
    ]
    assert findings(results) == []
    assert "speed_map" not in figures(results)


def test_different_targets_stand_in_a_column(synthetic):
    results = {case: synthetic([(None, 1.0)], convergence=measured([300, 300])) for case in "ab"}
    results["b"]["convergence"]["target"] = 0.9
    table = convergence(results)
    assert table.title == "training until the target"
    assert columns(table, "target") == {"a": "94 %", "b": "90 %"}


def seeds(synthetic, count=5, **changes):
    return {
        f"A {seed}": synthetic(
            [(None, 10.0 + seed)], method="A", condition="hot", seed=seed, accuracies=[0.9], cells=100 + seed
        )
        | {"accuracy_median": 0.90 + 0.01 * seed, "convergence": measured([100 * seed])}
        | changes
        for seed in range(count)
    }


def test_seeds_of_one_experiment_are_one_row(synthetic):
    results = seeds(synthetic) | {"B": synthetic([(None, 70.0)])}
    runs, plain = tables(results)
    assert columns(runs, "runs") == {"A": "5"}
    assert columns(runs, "images to 94 %") == {"A": "200"}
    assert columns(plain, "accuracy %") == {"A, hot, 5 seeds": "92.00", "B": "90.00"}
    assert columns(plain, "quartiles") == {"A, hot, 5 seeds": "91.00-93.00", "B": "89.00-91.00"}
    assert columns(plain, "energy (paper)") == {"A, hot, 5 seeds": "12", "B": "70"}
    assert columns(plain, "cells") == {"A, hot, 5 seeds": "102", "B": "6,272"}
    assert any(note.startswith("of several seeds") for note in notes(results))
    assert not any(note.startswith("of several seeds") for note in notes({"B": results["B"]}))


def test_what_a_seed_does_not_model_is_not_modelled(synthetic):
    results = seeds(synthetic, 3)
    results["A 1"] |= {"energy_total_j": None, "accuracy_median": None}
    (merged,) = merge_seeds(results).values()
    assert merged["energy_total_j"] is None
    assert merged["accuracy_median"] is None
    assert merged["energy_paper"] == 11
    assert merged["reached"] is None


def test_cases_of_one_seed_are_not_merged(synthetic, methods):
    assert merge_seeds(methods) == methods
    several = {case: result | {"method": "A", "seed": i} for i, (case, result) in enumerate(methods.items())}
    assert list(merge_seeds(several)) == [f"A, {len(methods)} seeds"]
    assert list(merge_seeds(seeds(synthetic, seed=7))) == [f"A {seed}" for seed in range(5)]
    one, *_ = several
    others = several | {one: synthetic([(0.5, 1.0)], method="A", seed=0)}  # asked for another point
    assert list(merge_seeds(others)) == list(methods)


def test_the_least_energy_of_seeds_is_their_median_and_reached_where_most_reach_it(synthetic):
    of_seeds = [
        [(0.0, 500.0, True), (0.01, 50.0, False), (0.02, 9.0, False)],
        [(0.0, 300.0, True), (0.01, 20.0, True), (0.02, 7.0, True)],
        [(0.0, 400.0, True), (0.01, 10.0, True), (0.02, 8.0, False)],
    ]
    results = {f"A {n}": synthetic(points, method="A", seed=n) for n, points in enumerate(of_seeds)}
    results["b"] = synthetic([(0.0, 800.0, True), (0.01, 100.0, True), (0.02, 70.0, True)], baseline=True)
    least, every, *_ = tables(results)
    ours = "A, 3 seeds"
    assert columns(least, "energy at 0 % drop")[ours] == "400, 300 to 500"
    assert columns(least, "energy at 1 % drop")[ours] == "20, 10 to not reached"
    assert columns(least, "energy at 2 % drop")[ours] == "8, 7 to 9 (-3.10 %)"
    assert columns(least, "below baselines")[ours] == "2.0×, 1.6× to 2.7×"
    said = (
        "The best baseline takes 2.0× (0 % drop; 1.6× to 2.7×), 5.0× (1 % drop; not reached to 10×) the energy of A, "
    )
    assert said + "in paper units." in findings(results)
    assert notes(results)[0].startswith("2 % drop is not reached by A (most seeds)")
    assert [row[1] for row in every.rows[1:]] == ["A 0", "A 1", "A 2", "b"] * 3
    assert merge_seeds(results)[ours]["points"][1]["energy_weight"] == 0.5


def test_energies_of_several_seeds_are_compared_within_each(synthetic):
    methods = {"A": (10.0, 200.0, 30.0), "B": (100.0, 300.0, 3000.0)}
    results = {
        f"{method}, {condition} {seed}": synthetic(
            [(0.01, energy, True)], method=method, condition=condition, seed=seed, baseline=method == "B"
        )
        for method, energies in methods.items()
        for condition in ("hot", "cold")
        for seed, energy in enumerate(energies)
    }
    assert columns(least_energies(results), "below baselines")["A, hot, 3 seeds"] == "10×, 1.5× to 100×"
    in_total = "A takes 1.0× (hot), 1.0× (cold) the energy of B, in joules with converters and drivers."
    assert in_total in findings(results)  # in paper units the conditions change nothing
    for seed in range(3):
        results[f"A, hot {seed}"]["points"][0]["energy_paper"] /= 2
    in_paper = "A takes 0.050× (hot; 0.0050× to 0.33×), 0.10× (cold; 0.010× to 0.67×) the energy of B, in paper units."
    assert in_paper in findings(results)


def test_curves_of_runs_are_drawn_with_the_target_a_panel_a_condition(transfer):
    panels = figures(transfer)["convergence"].axes
    assert [axes.get_title() for axes in panels] == ["N = 0", "N = 3", "N = 8"]
    drawn = lines(panels[1])
    assert drawn["transfer"] == pytest.approx([50, 50, *[96] * 9])
    assert drawn["target"] == [94, 94]
    assert list(panels[1].lines[0].get_xdata()) == list(range(0, 1001, 100))
    assert len(panels[1].collections) == 2  # bands


def test_curves_without_a_condition_are_in_every_panel_and_panels_are_few(synthetic):
    results = {"scratch": synthetic([(None, 1.0)], convergence=measured([900]), baseline=True)}
    for i in range(12):
        own = synthetic([(None, 1.0)], method="A", condition=f"{i}", accuracies=[0.9], convergence=measured([300]))
        results[f"A {i}"] = own
    panels = figures(results)["convergence"].axes
    assert [axes.get_title() for axes in panels] == ["0", "2", "4", "7", "9", "11"]
    assert all(set(lines(axes)) == {"scratch", "A", "target"} for axes in panels)
    assert not panels[0].collections  # no band of one run


def test_the_map_shows_every_ratio_in_its_cell(transfer):
    axes, bar = figures(transfer)["speed_map"].axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["N = 0", "N = 3", "N = 8"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["transfer"]
    assert [text.get_text() for text in axes.texts] == ["≥ 7.5×\n(≥ 6.0)", "3.0×\n(3.0 to 3.0)", "never"]
    assert axes.images[0].get_array().tolist() == [[4, pytest.approx(3), 0.25]]
    assert bar.get_ylabel() == "times faster than\nscratch"


def test_figures_of_convergence_need_what_they_show(transfer, synthetic):
    one = {case: result for case, result in transfer.items() if result["condition"] == "N = 3"}
    assert "convergence" in figures(one)
    assert "speed_map" not in figures(one)  # one condition
    assert "speed_map" not in figures({case: r | {"baseline": False} for case, r in transfer.items()})
    assert not {"convergence", "speed_map"} & set(figures({"a": synthetic([(None, 1.0)])}))


def test_histories_with_the_accuracies_of_all_runs_are_drawn_as_before(synthetic):
    history = [{"step": 5.0 * i, "val/accuracy": 0.5, "val/accuracies": [0.4, 0.6]} for i in range(3)]
    (axes,) = figures({"a": synthetic([(None, 1.0)], history=history)})["training"].axes
    assert lines(axes) == {"a": [0.5, 0.5, 0.5]}


def test_many_names_stand_below_the_panels(synthetic, tmp_path):
    results = {f"a long name of case {i}": synthetic([(None, 1.0)]) for i in range(25)}
    figure = figures(results)["training"]
    assert figure.axes[0].get_legend() is None
    assert len(figure.legends[0].get_texts()) == 25
    figure.savefig(tmp_path / "training.png")  # a warning if there were no room


def test_accuracies_under_conditions_are_those_of_all_seeds(synthetic):
    results = {
        f"A {seed}": synthetic([(None, 1.0)], method="A", condition="hot", seed=seed, accuracies=[0.8 + 0.1 * seed])
        for seed in range(2)
    }
    (axes,) = figures(results)["accuracy_by_condition"].axes
    (one,) = axes.containers
    assert list(one.lines[0].get_ydata()) == pytest.approx([85])


def test_conditions_of_several_quantities_have_a_panel_each(synthetic):
    def case(accuracy, method, condition):
        return synthetic([(None, 1.0)], method=method, condition=condition, accuracies=[accuracy])

    results = {
        "digital": case(0.9, "digital", None),
        "no skew": case(0.8, "TTv2", "skew = 0"),
        "skew": case(0.6, "TTv2", "skew = 0.1"),
        "noise": case(0.7, "TTv2", "transfer noise = 5 %"),
    }
    skew, noise = figures(results)["accuracy_by_condition"].axes
    assert (skew.get_xlabel(), noise.get_xlabel()) == ("skew", "transfer noise")
    assert [[label.get_text() for label in axes.get_xticklabels()] for axes in (skew, noise)] == [["0", "0.1"], ["5 %"]]
    for axes, expected in ((skew, [80, 60]), (noise, [70])):
        (container,) = axes.containers
        assert list(container.lines[0].get_ydata()) == pytest.approx(expected)
        (line,) = [line for line in axes.lines if line.get_label() == "digital"]
        assert list(line.get_ydata()) == pytest.approx([90, 90])
    assert skew.get_ylim() == noise.get_ylim()


# what learning on the chip costs


def test_learning_costs_are_a_line_a_method_over_the_medians_of_seeds(synthetic):
    results = {}
    for method in ("plain", "A+B"):
        for number, condition in enumerate(("low", "high"), 1):
            for seed in range(3):
                results[f"{method}, {condition}, seed {seed}"] = synthetic([(None, 1.0)]) | {
                    "method": method,
                    "condition": condition,
                    "seed": seed,
                    "accuracy_median": 0.9 + 0.01 * seed,
                    "energy_paper": number * 1e4,
                    "training_energy_j": number * 1e-3,
                    "training_latency_s": number * 0.1,
                    "training_pulses": 5.0,
                }
    figure = learning_costs(results)
    assert figure is not None and len(figure.axes) == 3
    for axes, first in zip(figure.axes, (1e4, 1e-3, 0.1), strict=True):
        drawn = [container.lines[0] for container in axes.containers]
        assert [list(line.get_xdata()) for line in drawn] == [[first, 2 * first]] * 2
        assert [list(line.get_ydata()) for line in drawn] == [[91.0, 91.0]] * 2
    assert learning_costs({name: result for name, result in results.items() if "plain" in name}) is None


def test_accuracy_over_time_is_a_table_and_a_figure(synthetic):
    found = [{"time_s": 1.0, "accuracies": [0.9, 0.8, 0.85]}, {"time_s": 86_400.0, "accuracies": [0.5, 0.7, 0.6]}]
    results = {case: synthetic([(None, 1.0)]) for case in ("drifts", "stays")}
    results["drifts"]["points"][0]["over_time"] = results["drifts"]["over_time"] = found
    table = next(table for table in tables(results) if table.title == "accuracy over time")
    assert table.rows == [
        *[("case", "% after 1 s", "% after 1 d"), ("drifts", "85.00 (80.00-90.00)", "60.00 (50.00-70.00)")]
    ]
    (axes,) = figures(results)["over_time"].axes
    assert axes.get_xscale() == "log" and len(axes.lines) >= 1
    assert "over_time" not in figures({"stays": results["stays"]})

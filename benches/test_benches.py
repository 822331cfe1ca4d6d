"""Tests of what the measuring scripts compute themselves: python3 -m unittest discover -s benches"""

import contextlib
import io
import json
import sys
import tempfile
import unittest
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import charts
import epoch
import head_to_head
import methods
import sampling_accuracy
import scaling
import side_by_side


def refused(function, *arguments):
    """The message with which a script ends."""
    try:
        function(*arguments)
    except SystemExit as end:
        return str(end)
    raise AssertionError("it was accepted")


class Methods(unittest.TestCase):
    def test_names_are_recipes(self):
        self.assertEqual(methods.recipe_sets("paper@0.3 wta"), ["keep.policy=paper", "keep.ratio=0.3", "keep.estimator=wta"])
        self.assertEqual(methods.recipe_sets("exact keep.uniform=0.2 bf16"), ["keep.policy=exact", "keep.uniform=0.2", "train.precision=bf16"])

    def test_names_are_arguments(self):
        self.assertEqual(methods.bench_arguments("lean@0.1 lora lora.rank=4"),
                         ["--keep", "lean", "--ratio", "0.1", "--method", "lora", "--lora-rank", "4"])
        self.assertEqual(methods.torch_arguments("torch"), [])
        self.assertEqual(methods.torch_arguments("torch bf16 checkpointing"), ["--precision", "bf16", "--checkpointing"])
        self.assertEqual(methods.torch_arguments("torch compile"), ["--compile"])

    def test_unknown_words_are_named(self):
        self.assertIn("found 'lena@0.3'", refused(methods.checked, ["exact", "lena@0.3"]))
        self.assertIn("found 'fp16'", refused(methods.checked, ["torch fp16"]))
        self.assertIn("found optim.lr", refused(methods.bench_arguments, "exact optim.lr=1"))
        self.assertIn("named twice: exact", refused(methods.checked, ["exact", "torch", "exact"]))

    def test_groups_are_known(self):
        for names in sampling_accuracy.GROUPS.values():
            methods.checked(names)


class Turns(unittest.TestCase):
    def test_each_goes_first_once(self):
        order = []
        commands = {name: [sys.executable, "-c", f"print('{{\"s\": {i}.5}}')"] for i, name in enumerate("abc")}
        with contextlib.redirect_stderr(io.StringIO()):
            for found in side_by_side.in_turns(commands, 3, 1, "s", prepare=lambda name, index: order.append(name)):
                self.assertEqual({len(runs) for runs in found.values()}, {len(order) // 3})
        self.assertEqual("".join(order), "abcbcacab")
        self.assertEqual(found["c"], [{"s": 2.5}] * 3)

    def test_failures_end_all(self):
        fails = lambda code: refused(side_by_side.run, "it", [sys.executable, "-c", code], 1)
        self.assertIn("it ended with exit code 3", fails("exit(3)"))
        self.assertIn("it printed no JSON object", fails("print('x')"))


class Figures(unittest.TestCase):
    def test_memory_beyond_states(self):
        rss = lambda total: {"step_seconds_min": 1, "step_seconds_median": 1, "tokens": 1, "kept_bytes": 1, "peak_rss_bytes": total,
                             "import_rss_bytes": 100, "trainable_parameters": 10, "frozen_parameters": 5}
        found = head_to_head.summary([rss(1000), rss(900)])
        self.assertEqual((found["own_rss_bytes"], found["beyond_states_bytes"]), (900, 900 - 160 - 20))
        self.assertEqual(head_to_head.ratio(10, -1), "–")

    def test_differences_are_taken_by_seed(self):
        runs = lambda *accuracy: [{"seed": i, "accuracy": a, "loss": 1, "kept_bytes": 1, "peak_bytes": 1, "step_seconds_median": 1}
                                  for i, a in enumerate(accuracy)]
        exact = {r["seed"]: r for r in runs(0.80, 0.90)}
        row = sampling_accuracy.row("lean", runs(0.79, 0.89), exact)
        self.assertEqual(row[1:4], ["2", "84.00 ± 7.07", "-1.00 ± 0.00"])

    def test_costs_are_found_again(self):
        shapes = [(8, 64), (8, 2048), (256, 128), (8, 512), (32, 128)]
        cost = lambda c, t, p: [c + t * b * s + p * b * s * s for b, s in shapes]
        for costs in ((0.02, 3e-5, 1e-8), (0.0, 3e-5, 1e-8), (0.02, 3e-5, 0.0)):
            for found, expected in zip(scaling.fitted(shapes, cost(*costs)), costs):
                self.assertAlmostEqual(found, expected, delta=1e-9 * 0.02)
        # less than in proportion to the tokens: attention gets no cost below 0
        self.assertEqual(scaling.fitted(shapes, [(b * s) ** 0.5 * s**-0.2 for b, s in shapes])[2], 0.0)

    def test_rows_are_drawn_once(self):
        with tempfile.TemporaryDirectory() as folder:
            data = Path(folder)
            (data / "train.tsv").write_text("sentence\tlabel\n" + "".join(f"a\x85{i}\t1\n" for i in range(50)), encoding="utf-8")
            (data / "dev.tsv").write_text("sentence\tlabel\n")
            texts = [(epoch.limited(data, limit, data / str(limit)) / "train.tsv").read_text(encoding="utf-8") for limit in (7, 80)]
            self.assertEqual(texts[0].count("\n"), 8)
            self.assertEqual(texts[1], (data / "train.tsv").read_text(encoding="utf-8"))


class Charts(unittest.TestCase):
    def test_axes_hold_all_values(self):
        axis = charts.Axis([0.3, 40], charts.decimal_ticks(), 100, 0)
        self.assertEqual((axis.ticks[0], axis.ticks[-1]), (0.2, 50))
        self.assertEqual((axis.at(0.2), axis.at(50)), (100, 0))
        self.assertAlmostEqual(axis.at(10**0.5), 50)

    def test_pictures_are_xml(self):
        curve = [(8, 1.0), (16, 2.5)]
        panel = ("a < b", "tokens & more", {"x": curve, "y": curve})
        root = ElementTree.fromstring(charts.rows_of_panels(["x", "y"], [[panel, panel]]))
        self.assertEqual(len(root.findall("{*}circle")), 8)
        self.assertIn("a < b", [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")])


class Configurations(unittest.TestCase):
    def test_changes_are_copies(self):
        source = side_by_side.BENCHES / "bert-base.json"
        with tempfile.TemporaryDirectory() as folder:
            copy = json.loads(side_by_side.changed(source, folder, **head_to_head.NO_DROPOUT).read_text())
        self.assertEqual((copy["hidden_dropout_prob"], copy["hidden_size"]), (0.0, 768))


if __name__ == "__main__":
    unittest.main()

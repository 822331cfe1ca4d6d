//! `colrow compare`: runs side by side.

mod common;

use common::Place;
use serde_json::json;

#[test]
fn runs_are_put_side_by_side() {
    let place = Place::new();
    for (name, seed, keep) in [("exact-0", 0, "exact"), ("exact-1", 1, "exact"), ("pps", 0, "paper")] {
        let sets =
            [format!("seed={seed}"), format!("keep.policy={keep}"), format!("output={name}"), "train.steps=4".into()];
        place.train(&sets.each_ref().map(String::as_str));
    }
    let all = ["compare", "exact-0", "exact-1", "pps"];
    let json_of = place.ok_json(&[&all[..], &["--json", "--out", "page.html"]].concat());
    let (runs, groups) = (json_of["runs"].as_array().unwrap(), json_of["groups"].as_array().unwrap());
    assert_eq!((runs.len(), groups.len(), &json_of["metric"]), (3, 2, &json!("accuracy")));
    for (run, name) in runs.iter().zip(["exact-0", "exact-1", "pps"]) {
        let summary = place.json(&format!("{name}/summary.json"));
        for key in ["kept_bytes", "peak_bytes", "peak_rss_bytes", "steps", "seconds", "task"] {
            assert_eq!(run[key], summary[key], "{name} {key}");
        }
        assert_eq!((&run["final"], &run["name"]), (&summary["final"]["accuracy"], &json!(name)));
    }
    let (a, b) = (runs[0]["final"].as_f64().unwrap(), runs[1]["final"].as_f64().unwrap());
    let spread = &groups[0]["final"];
    assert_eq!((&groups[0]["name"], &groups[0]["runs"]), (&json!("exact"), &json!(2)));
    assert!((spread["mean"].as_f64().unwrap() - (a + b) / 2.0).abs() < 1e-12);
    assert!((spread["deviation"].as_f64().unwrap() - (a - b).abs() / 2_f64.sqrt()).abs() < 1e-12);
    assert_eq!((&groups[1]["name"], &groups[1]["final"]["deviation"]), (&json!("pps"), &json!(null)));
    let page = place.text("page.html");
    assert!(
        page.contains("3 runs on classify of 2 recipes, each the mean of its seeds") && page.contains("<th>Seeds</th>")
    );
    assert!(page.contains("What it costs") && page.contains("against peak memory") && page.contains("</html>"));

    let table = place.ok(&all);
    let lines: Vec<_> = table.lines().collect();
    assert_eq!(lines.len(), 3);
    assert!(lines[0].contains(" peak of the process "), "{table}");
    assert!(lines[0].starts_with("run") && lines[1].starts_with("exact ") && lines[1].contains(" ± "), "{table}");
}

#[test]
fn a_run_that_is_given_twice_counts_once() {
    let place = Place::new();
    for name in ["a", "b"] {
        place.train(&[&format!("output={name}"), "train.steps=1"]);
    }
    let again = place.path("b/../a").display().to_string();
    let ran = place.run(&["compare", "a", &again, "a/", "--json"]);
    let found: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!((&found["groups"][0]["runs"], &found["groups"][0]["best"]["deviation"]), (&json!(1), &json!(null)));
    assert_eq!(ran.err.matches("the run was given before, and counts once").count(), 2, "{}", ran.err);
    // one seed is no two, wherever its run is
    let ran = place.run(&["compare", "a", "b"]);
    assert!(ran.err.contains("a and b are of one recipe and one seed"), "{}", ran.err);
    place.train(&["output=c", "train.steps=1", "seed=2"]);
    assert_eq!(place.run(&["compare", "a", "c"]).err, "");
    // the page too
    place.ok(&["report", "a", "a"]);
    assert!(!place.text("a/report.html").contains("Seeds"));
}

#[test]
fn what_cannot_be_compared_is_refused() {
    let place = Place::new();
    place.train(&["output=a", "train.steps=1"]);
    place.write("values.tsv", "sentence\tlabel\ngood film\t1.5\nbad film\t0.5\nfine\t2\npoor plot\t1\n");
    place.train(&["output=b", "train.steps=1", "task=regress", "data.train=values.tsv", "data.dev=values.tsv"]);
    let fails = |args: &[&str], code: i32, needles: &[&str]| {
        let ran = place.run(&[&["compare"], args].concat());
        assert_eq!(ran.code, Some(code), "{}", ran.err);
        needles.iter().for_each(|needle| assert!(ran.err.contains(needle), "{needle:?} is not in {}", ran.err));
    };
    fails(
        &["a", "b"],
        2,
        &["expected runs of one task, found accuracy of classify and spearman of regress", "in b", "hint"],
    );
    fails(&["a", "model"], 1, &["model"]);
    std::fs::remove_file(place.path("a/summary.json")).unwrap();
    fails(&["a"], 2, &["expected a run that has ended", "in a", "hint: go on with it"]);
}

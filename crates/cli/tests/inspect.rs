//! `colrow inspect`: what sampling would cost.

mod common;

use common::{Place, rows, tsv};

#[test]
fn every_linear_is_looked_at() {
    let place = Place::new();
    place.write("train.tsv", tsv(&rows(64, 1, None)));
    let args = ["inspect", "recipe.toml", "--steps", "4", "--draws", "4"];
    let json = place.ok_json(&[&args[..], &["--json", "--out", "page.html"]].concat());
    let sites = json["sites"].as_array().unwrap();
    let names: Vec<_> = sites.iter().map(|s| s["name"].as_str().unwrap()).collect();
    assert_eq!((names.len(), names[0], names[10]), (11, "encoder.layer.0.attention.self.qkv", "classifier"));
    assert_eq!(json["steps"], 4);
    for site in sites {
        let shares: Vec<f64> = site["mass"].as_array().unwrap().iter().map(|m| m["share"].as_f64().unwrap()).collect();
        assert!(shares.is_sorted() && shares.iter().all(|s| (0.0..=1.0).contains(s)), "{site}");
        assert!(shares[5] >= 0.5, "the larger half has at least half of the mass: {site}");
    }
    let mean = |estimator: &str, norms: &str, ratio: usize| {
        let all = json["mean"]["ratios"][ratio]["estimators"].as_array().unwrap();
        all.iter().find(|e| e["estimator"] == estimator && e["norms"] == norms).unwrap()["rmse"].as_f64().unwrap()
    };
    for norms in ["current", "cached", "running", "uniform"] {
        assert!(mean("pps", norms, 1) < mean("crs", norms, 1), "{norms}");
        assert!(mean("pps", norms, 2) < mean("pps", norms, 0), "{norms}");
    }
    assert!(mean("pps", "current", 1) < mean("pps", "uniform", 1));
    let page = place.text("page.html");
    assert!(page.contains("Where the mass is") && page.contains("</html>"));
    let table = place.ok(&args);
    assert_eq!(table.lines().count(), 2 + 11 + 1);
    assert!(table.lines().last().unwrap().starts_with("mean"));
}

#[test]
fn what_cannot_be_inspected() {
    let place = Place::new();
    let fails = |args: &[&str], needles: &[&str]| {
        let ran = place.run(&[&["inspect", "recipe.toml"], args].concat());
        assert_eq!(ran.code, Some(2), "{}", ran.err);
        needles.iter().for_each(|needle| assert!(ran.err.contains(needle), "{needle:?} is not in {}", ran.err));
    };
    fails(&["--steps", "0"], &["expected at least 1, found 0"]);
    let sets = ["--set", "train.method=bitfit", "--set", "train.modules_to_save=[]"];
    fails(&sets, &["trains no linear's weight", "hint: inspect full fine-tuning"]);
}
